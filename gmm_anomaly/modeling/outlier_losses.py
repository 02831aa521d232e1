"""Training losses on pasted objects: RbA's, and PEBAL's, which learns to abstain from all classes.

Both come on top of a network's own losses. A batch without a pasted pixel adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from .losses import IGNORE_LABEL

# Scores that known pixels stay below, and that outliers reach: RbA's (its released networks), and energies.
RBA_MARGINS, ENERGY_MARGINS = (0.0, 5.0), (-12.0, -6.0)
# PEBAL's weights of the energy's hinges, and of outliers among what abstains.
ENERGY_WEIGHT, OUTLIER_WEIGHT = 0.1, 0.1


def outlier_masks(batched_inputs: Sequence[Mapping[str, Any]], labels: Tensor) -> Tensor:
    """The "outliers" (H, W) bool of each image, padded to labels (B, H', W').

    Raises:
        ValueError: an image without them.
    """
    masks = torch.zeros_like(labels, dtype=torch.bool)
    for row, item in zip(masks, batched_inputs, strict=True):
        if "outliers" not in item:
            raise ValueError(
                'MODEL.OUTLIER.LOSS: expected "outliers", the mask of pasted objects, with each training '
                "image, found none; set INPUT.OUTLIERS.SHARE above 0 (and SOURCE to what is pasted)"
            )
        found = item["outliers"]
        row[: found.shape[0], : found.shape[1]] = found.to(labels.device, non_blocking=True)
    return masks


def squared_hinges(score: Tensor, margins: tuple[float, float], known: Tensor, outliers: Tensor) -> Tensor:
    """Half of: the mean of ``max(0, s - low)^2`` over known pixels, plus that of ``max(0, high - s)^2`` over
    outliers. score, known, outliers: (B, H, W); margins: low and high. Without a pixel a mean is 0."""
    low, high = margins
    below, above = (score - low).relu().square(), (high - score).relu().square()
    return 0.5 * (_mean(below, known) + _mean(above, outliers))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    # Masked, not selected: a GPU is never asked how many pixels there are.
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)


def rba_loss(score: Tensor, labels: Tensor, outliers: Tensor) -> Tensor:
    """RbA's loss with outliers (Nayal et al., ICCV 2023): their score ``-sum_c tanh z_c`` is pulled up to 5.

    Known pixels are held below 0. Masks always are; logits would not be, for no cross-entropy changes when
    the same number is taken off all of them.

    Args:
        score: (B, h, w) float32, brought to the labels' size bilinearly.
        labels: (B, H, W) int64, 255 = unknown. outliers: (B, H, W) bool.

    Returns:
        A scalar; zero, with gradient zero, without an outlier.
    """
    score = F.interpolate(score[:, None], labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    loss = squared_hinges(score, RBA_MARGINS, labels != IGNORE_LABEL, outliers)
    return torch.where(outliers.any(), loss, 0.0)


def pebal_losses(logits: Tensor, abstention: Tensor, labels: Tensor, outliers: Tensor) -> dict[str, Tensor]:
    """PEBAL's losses (Tian et al., ECCV 2022), without its regularisers of smoothness and sparsity.

    With the softmax p of the classes' logits and one that abstains, the energy ``E = -logsumexp_c z_c`` and
    the penalty ``a = E^2``, at least 1, a pixel of class y has the loss ``-log(p_y + p_abstain / a)``, and an
    outlier the mean of this over all classes, times 0.1: where the energy is high, abstaining costs little.
    And squared hinges hold the energy of known pixels below -12, and of outliers above -6.

    Args:
        logits: (B, C, h, w), abstention: (B, 1, h, w) float32, brought to the labels' size bilinearly.
        labels: (B, H, W) int64, 255 = unknown. outliers: (B, H, W) bool.

    Returns:
        "loss_abstention" and "loss_energy", scalars; zero, with gradient zero, without an outlier.
    """
    both = torch.cat([logits, abstention], dim=1).contiguous()
    both = F.interpolate(both, labels.shape[-2:], mode="bilinear", align_corners=False)
    known = labels != IGNORE_LABEL
    energy = -both[:, :-1].logsumexp(dim=1)
    log_prob = both.log_softmax(dim=1)
    abstaining = log_prob[:, -1:] - energy.square().clamp(min=1)[:, None].log()
    gain = torch.logaddexp(log_prob[:, :-1], abstaining)
    own = gain.gather(1, torch.where(known, labels, 0)[:, None])[:, 0]
    losses = {
        "loss_abstention": -_mean(own, known) - OUTLIER_WEIGHT * _mean(gain.mean(dim=1), outliers),
        "loss_energy": ENERGY_WEIGHT * squared_hinges(energy, ENERGY_MARGINS, known, outliers),
    }
    return {name: torch.where(outliers.any(), loss, 0.0) for name, loss in losses.items()}


class OutlierLoss(nn.Module):
    """``MODEL.OUTLIER.LOSS`` of a softmax classifier; "pebal" has a layer of its own, for the logit that
    abstains, which only training needs: afterwards the score is the energy.

    Args:
        name: "rba" or "pebal". in_channels: of the pixel features.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        self.abstention = nn.Conv2d(in_channels, 1, kernel_size=1) if name == "pebal" else None

    def forward(
        self, features: Tensor, logits: Tensor, labels: Tensor, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """features: (B, F, h, w); logits: (B, C, h, w) float32; labels: (B, H, W) int64 -> named losses.

        Raises:
            ValueError: an image without a mask of outliers.
        """
        outliers = outlier_masks(batched_inputs, labels)
        if self.abstention is None:
            return {"loss_rba": rba_loss(-logits.tanh().sum(dim=1), labels, outliers)}
        return pebal_losses(logits, self.abstention(features).float(), labels, outliers)


def build_outlier_loss(cfg: CfgNode, in_channels: int) -> OutlierLoss:
    """What ``MODEL.OUTLIER.LOSS`` adds to a pixel classifier on features of so many channels.

    Raises:
        ValueError: a classifier without logits of its own to train.
    """
    name, classifier = cfg.MODEL.OUTLIER.LOSS, cfg.MODEL.CLASSIFIER.NAME
    if classifier != "softmax":
        raise ValueError(
            f'MODEL.OUTLIER.LOSS: {name!r} needs the logits of MODEL.CLASSIFIER.NAME "softmax" ("rba" takes '
            f'a mask model too), found {classifier!r}; set MODEL.OUTLIER.LOSS to ""'
        )
    return OutlierLoss(name, in_channels)
