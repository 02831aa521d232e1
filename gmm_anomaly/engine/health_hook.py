"""How well the mixtures are, in TensorBoard: numbers and a picture from a few labelled images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from gmm_anomaly.evaluation.overlays import distinct_colors
from gmm_anomaly.gmm.health import pixel_health
from gmm_anomaly.visualization import plot_embedding

from .labelled_embedding import labelled_embedding
from .probe_images import ProbeImages, probe_images

logger = logging.getLogger(__name__)

IMAGES = 4
PIXELS_PER_IMAGE = 4096


class HealthHook(HookBase):
    """Writes the health of a model's mixtures on fixed images every few iterations, and after the last one.

    Of at most 4096 evenly spaced labelled pixels an image, in evaluation mode: how many components each class
    effectively uses, how sharply pixels belong to one, their log-likelihood, and a picture of their
    embeddings on the plane of the largest variance with all components' ellipses of one standard deviation.
    Draws no random number and changes nothing, so that a training ends the same with and without it. Not
    collective: for the main process alone.

    Args:
        model: a segmentor with a GMM classifier, not wrapped.
        images: the images.
        period: iterations from one look to the next.
        names, colors: of the classes; colors RGB, 0 to 255.

    Raises:
        ValueError: a period that is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ProbeImages,
        *,
        period: int,
        names: Sequence[str],
        colors: Sequence[Sequence[int]],
    ) -> None:
        if period < 1:
            raise ValueError(f"MODEL.GMM.HEALTH_PERIOD: expected at least 1, found {period}")
        self.model = model
        self.images = images
        self.period = period
        self.names = list(names)
        self.colors = colors

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        # Before the first warm start there is nothing to look at.
        if self.model.bank.is_fitted:
            features, labels = self._pixels()
            if len(labels):
                self._write_numbers(features, labels)
                self.trainer.storage.put_image(
                    "gmm/embedding", self._picture(features, labels, done).transpose(2, 0, 1)
                )

    @torch.no_grad()
    def _pixels(self) -> tuple[Tensor, Tensor]:
        training = self.model.training
        self.model.eval()
        try:
            parts = [_spaced(*labelled_embedding(self.model, item)) for item in self.images.items]
        finally:
            self.model.train(training)
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        finite = features.isfinite().all(dim=1)
        return features[finite], labels[finite]

    def _write_numbers(self, features: Tensor, labels: Tensor) -> None:
        health = pixel_health(self.model.bank, features, labels)
        effective = health.effective_components
        numbers = {
            "assignment_entropy": health.assignment_entropy,
            # Of training pixels it says less: a name of its own, lest two runs be compared by it.
            ("held_out" if self.images.held_out else "train") + "_log_likelihood": health.log_likelihood,
            "effective_components": float(effective.nanmean()),
        } | {
            f"effective_components/{name}": number
            for name, number in zip(self.names, effective.tolist(), strict=True)
        }
        for name, number in numbers.items():
            if not math.isnan(number):
                self.trainer.storage.put_scalar(f"gmm/{name}", number, smoothing_hint=False)

    def _picture(self, features: Tensor, labels: Tensor, iteration: int) -> np.ndarray:
        bank = self.model.bank
        fitted = bank.fitted
        owners = torch.arange(bank.num_classes, device=fitted.device)[:, None].expand_as(fitted)
        arrays = features, labels, bank.unit_means[fitted], bank.scales[fitted], owners[fitted]
        return plot_embedding(
            *(array.cpu().numpy() for array in arrays), self.colors, self.names,
            title=f"{self.images.dataset}, iteration {iteration}",
        )  # fmt: skip


def _spaced(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if len(labels) <= PIXELS_PER_IMAGE:
        return features, labels
    chosen = torch.linspace(0, len(labels) - 1, PIXELS_PER_IMAGE, device=labels.device, dtype=torch.float64)
    return features[chosen.long()], labels[chosen.long()]


def health_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """The hook for a model with mixtures, in the main process, unless ``MODEL.GMM.HEALTH_PERIOD`` is 0.

    Raises:
        ValueError: a key out of range. Others as :func:`probe_images`.
    """
    keys = cfg.MODEL.GMM
    if getattr(model, "bank", None) is None or keys.HEALTH_PERIOD == 0 or not comm.is_main_process():
        return []
    images = probe_images(cfg, IMAGES)
    kind = "held out" if images.held_out else "not held out, for DATASETS.TEST has no other closed set"
    logger.info(
        "The mixtures' health is measured on %d images of %s (%s)", len(images.items), images.dataset, kind
    )
    metadata = MetadataCatalog.get(images.dataset)
    names = list(metadata.stuff_classes)
    colors = metadata.get("stuff_colors") or distinct_colors(len(names))
    return [HealthHook(model, images, period=keys.HEALTH_PERIOD, names=names, colors=colors)]
