"""Contrast of pixels with vectors drawn from the mixtures of all classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmm_anomaly.gmm import GaussianMixtureBank


def sampled_contrast(
    anchors: Tensor, labels: Tensor, samples: Tensor, usable: Tensor, temperature: float = 0.1
) -> Tensor:
    """InfoNCE with samples of an anchor's class as positives and those of all other classes as negatives.

    With ``e(c) = mean over the samples z of class c of exp(<x, z> / T)`` an anchor ``x`` of class ``y`` has
    the loss ``-log(e(y) / sum_c e(c))``: the cross-entropy of ``log e``.

    Args:
        anchors: (A, D) floating point, of unit length.
        labels: (A,) int64; an anchor whose label is no usable class has no loss.
        samples: (C, S, D) floating point, of unit length; constants, no gradient reaches them.
        usable: (C,) bool, classes that take part.
        temperature: T.

    Returns:
        A scalar, the mean over the anchors that have a loss; zero, with gradient zero, when none has.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(
            "temperature (MODEL.GMM.SAMPLED_CONTRAST.TEMPERATURE): expected a positive number, found "
            f"{temperature}"
        )
    classes, draws, dim = samples.shape
    similarity = anchors @ samples.detach().reshape(-1, dim).t() / temperature
    evidence = similarity.view(-1, classes, draws).logsumexp(dim=2) - math.log(draws)
    known = (labels >= 0) & (labels < classes)
    index = torch.where(known, labels, 0)
    known = known & usable[index]
    # Without any usable class a row of -inf would give NaN; its anchors have no loss anyway.
    evidence = torch.where(usable | ~usable.any(), evidence, -torch.inf)
    own = evidence.gather(1, index[:, None])[:, 0]
    losses = torch.where(known, evidence.logsumexp(dim=1) - torch.where(known, own, 0.0), 0.0)
    return losses.sum() / known.sum().clamp(min=1)


def choose_anchors(
    labels: Tensor,
    correct: Tensor,
    num_classes: int,
    per_class: int,
    generator: torch.Generator | None = None,
    *,
    hard_share: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Pixels to contrast: of each class some misclassified ones, as far as there are any, the rest at random.

    Shapes do not depend on the data, so a GPU is never waited for.

    Args:
        labels: (N,) int64, N >= 1; anything outside ``0 .. C-1`` is no anchor.
        correct: (N,) bool, pixels whose predicted class is their label.
        num_classes: C.
        per_class: largest number of anchors of a class, P.
        generator: random state, on the labels' device.
        hard_share: of P that is taken from the misclassified pixels first; 0: none are preferred.

    Returns:
        index: (C, P) int64 pixels; valid: (C, P) bool, false where the class has too few pixels.
    """
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    known = (labels >= 0) & (labels < num_classes)
    group = torch.where(known, labels, num_classes)[shuffled]
    wrong = torch.where(correct[shuffled], num_classes, group)
    order, starts, _ = _sorted_groups(wrong, num_classes)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[wrong[order]]
    preferred = (wrong < num_classes) & (rank < int(per_class * hard_share))
    # The preferred ones first: a class of P pixels or more gives exactly P.
    first = torch.argsort((~preferred).to(torch.uint8), stable=True)
    order, starts, counts = _sorted_groups(group[first], num_classes)
    within = torch.arange(per_class, device=labels.device)
    position = (starts[:-1, None] + within).clamp(max=len(labels) - 1)
    return shuffled[first][order[position]], within < counts[:-1, None]


def _sorted_groups(group: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """group: (N,) int64 in ``0 .. num_groups`` -> stable order by group; starts and sizes."""
    counts = torch.zeros(num_groups + 1, dtype=torch.int64, device=group.device)
    counts.scatter_add_(0, group, torch.ones_like(group))
    return torch.argsort(group, stable=True), counts.cumsum(0) - counts, counts


class SampledContrast:
    """The contrast loss of GMM4AnomalySeg on a bank's mixtures.

    Args:
        weight: of the loss, once the hook has ramped it up.
        temperature: T of the loss.
        anchors_per_class, samples_per_class: at most so many pixels, and so many drawn vectors.
        hard_share: of the anchors that are misclassified pixels, as far as there are any.
        noise_scale: factor of the mixtures' standard deviations when vectors are drawn: 1 draws from the
            mixture itself, 0 gives its means.
        min_fill: a class takes part once its components' memories are full to this share, on average.

    Attributes:
        factor: of the weight at this iteration, 0 to 1; the hook sets it. At 0 the loss is not computed.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        *,
        weight: float = 0.05,
        temperature: float = 0.1,
        anchors_per_class: int = 50,
        samples_per_class: int = 32,
        hard_share: float = 0.5,
        noise_scale: float = 0.5,
        min_fill: float = 0.5,
    ) -> None:
        where = "MODEL.GMM.SAMPLED_CONTRAST"
        _require(temperature > 0, f"{where}.TEMPERATURE", "a positive number", temperature)
        _require(anchors_per_class >= 1, f"{where}.ANCHORS_PER_CLASS", "at least 1", anchors_per_class)
        _require(samples_per_class >= 1, f"{where}.SAMPLES_PER_CLASS", "at least 1", samples_per_class)
        _require(0 <= hard_share <= 1, f"{where}.HARD_SHARE", "a number in [0, 1]", hard_share)
        _require(noise_scale >= 0, f"{where}.NOISE_SCALE", "a number from 0 up", noise_scale)
        _require(0 <= min_fill <= 1, f"{where}.MIN_FILL", "a number in [0, 1]", min_fill)
        self.weight = weight
        self.temperature = temperature
        self.anchors_per_class = anchors_per_class
        self.samples_per_class = samples_per_class
        self.hard_share = hard_share
        self.noise_scale = noise_scale
        self.min_fill = min_fill
        self.factor = 0.0

    def usable(self, bank: GaussianMixtureBank) -> Tensor:
        """(C,) bool: classes whose components are all fitted and whose memories are full enough."""
        count = bank.memory.count.view(bank.num_classes, bank.num_components)
        fill = count.float().mean(dim=1) / bank.memory.slots
        return bank.fitted.all(dim=1) & (fill >= self.min_fill)

    def loss(self, bank: GaussianMixtureBank, embedding: Tensor, labels: Tensor, correct: Tensor) -> Tensor:
        """The weighted loss of a batch.

        Args:
            bank: the mixtures to draw from; they are read only.
            embedding: (N, D) float32, of unit length.
            labels: (N,) int64; anything outside ``0 .. C-1`` is never an anchor.
            correct: (N,) bool, pixels whose predicted class is their label.
        """
        classes = torch.arange(bank.num_classes, device=embedding.device)
        samples = bank.sample(classes, self.samples_per_class, noise_scale=self.noise_scale)
        index, valid = choose_anchors(
            labels, correct, bank.num_classes, self.anchors_per_class, hard_share=self.hard_share
        )
        target = torch.where(valid, classes[:, None], -1).flatten()
        loss = sampled_contrast(
            embedding[index.flatten()], target, samples, self.usable(bank), self.temperature
        )
        return self.weight * self.factor * loss


def _require(fits: bool, key: str, expected: str, found: float) -> None:
    if not fits:
        raise ValueError(f"{key}: expected {expected}, found {found}")
