"""Contrast of pixels with vectors drawn from the mixtures of all classes (GMM4AnomalySeg)."""

from __future__ import annotations

import math

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.memory import ComponentGroups

ANCHORS_PER_CLASS, DRAWS_PER_CLASS = 50, 32
# Iterations from one with the loss to the next.
INTERVAL = 5


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
        temperature: T, positive.

    Returns:
        A scalar, the mean over the anchors that have a loss; zero, with gradient zero, when none has.
    """
    classes, draws, dim = samples.shape
    similarity = anchors @ samples.detach().reshape(-1, dim).t() / temperature
    log_mean = similarity.view(-1, classes, draws).logsumexp(dim=2) - math.log(draws)
    known = (labels >= 0) & (labels < classes)
    index = torch.where(known, labels, 0)
    known = known & usable[index]
    # Without any usable class a row of -inf would give NaN; its anchors have no loss anyway.
    log_mean = torch.where(usable | ~usable.any(), log_mean, -torch.inf)
    own = log_mean.gather(1, index[:, None])[:, 0]
    losses = torch.where(known, log_mean.logsumexp(dim=1) - torch.where(known, own, 0.0), 0.0)
    return losses.sum() / known.sum().clamp(min=1)


def choose_anchors(
    labels: Tensor,
    correct: Tensor,
    num_classes: int,
    per_class: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pixels to contrast: half of each class's are misclassified ones, if there are so many, the rest random.

    Shapes do not depend on the data, so a GPU is never waited for.

    Args:
        labels: (N,) int64, N >= 1; anything outside ``0 .. C-1`` is no anchor.
        correct: (N,) bool, pixels whose predicted class is their label.
        num_classes: C.
        per_class: largest number of anchors of a class, P.
        generator: random state, on the labels' device.

    Returns:
        index: (C, P) int64 pixels; valid: (C, P) bool, false where the class has too few pixels.
    """
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    position = torch.arange(per_class, device=labels.device).expand(num_classes, -1)
    wrong = ComponentGroups(torch.where(correct, -1, labels)[shuffled], num_classes)
    hard = position < torch.clamp(wrong.counts, max=per_class // 2)[:, None]
    later = torch.ones(len(labels) + 1, dtype=torch.uint8, device=labels.device)
    later[torch.where(hard, wrong.pixel_at(position), len(labels))] = 0
    # The misclassified ones first: a class of P pixels or more gives exactly P.
    shuffled = shuffled[torch.argsort(later[:-1], stable=True)]
    groups = ComponentGroups(labels[shuffled], num_classes)
    return shuffled[groups.pixel_at(position)], position < groups.counts[:, None]


class SampledContrast:
    """The contrast loss of GMM4AnomalySeg on a bank's mixtures, with its schedule.

    Args:
        weight: of the loss, once it has grown.
        start: first iteration with the loss.
        ramp: iterations over which its weight then grows linearly; 0: it is whole at once.
        temperature: T of the loss.
        noise_scale: factor of the mixtures' standard deviations when vectors are drawn: 1 draws from the
            mixture itself, 0 gives its means.
        min_fill: a class takes part once its components' memories are full to this share, on average.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        *,
        weight: float = 0.05,
        start: int = 1500,
        ramp: int = 5000,
        temperature: float = 0.1,
        noise_scale: float = 0.5,
        min_fill: float = 0.5,
    ) -> None:
        for key, fits, expected, found in (
            ("START", start >= 0, "at least 0", start),
            ("RAMP", ramp >= 0, "at least 0", ramp),
            ("TEMPERATURE", temperature > 0, "a positive number", temperature),
            ("NOISE_SCALE", noise_scale >= 0, "at least 0", noise_scale),
            ("MIN_FILL", 0 <= min_fill <= 1, "a number in [0, 1]", min_fill),
        ):
            if not fits:
                raise ValueError(f"MODEL.GMM.SAMPLED_CONTRAST.{key}: expected {expected}, found {found}")
        self.weight = weight
        self.start = start
        self.ramp = ramp
        self.temperature = temperature
        self.noise_scale = noise_scale
        self.min_fill = min_fill

    def factor(self, iteration: int) -> float:
        """Of the loss's weight, 0 to 1: one in every five iterations has the loss."""
        since = iteration - self.start
        return 0.0 if since < 0 or since % INTERVAL else min((since + 1) / (self.ramp + 1), 1.0)

    def usable(self, bank: GaussianMixtureBank) -> Tensor:
        """(C,) bool: classes whose components are all fitted and whose memories are full enough."""
        count = bank.memory.count.view(bank.num_classes, bank.num_components)
        fill = count.float().mean(dim=1) / bank.memory.slots
        return bank.fitted.all(dim=1) & (fill >= self.min_fill)

    def losses(
        self, bank: GaussianMixtureBank, embedding: Tensor, labels: Tensor, correct: Tensor
    ) -> dict[str, Tensor]:
        """The weighted loss of a batch at the iteration of Detectron2's event storage; empty without a loss.

        Args:
            bank: the mixtures to draw from; they are read only.
            embedding: (N, D) float32, of unit length.
            labels: (N,) int64; anything outside ``0 .. C-1`` is never an anchor.
            correct: (N,) bool, pixels whose predicted class is their label.
        """
        factor = self.factor(get_event_storage().iter)
        if not factor:
            return {}
        classes = torch.arange(bank.num_classes, device=embedding.device)
        samples = bank.sample(classes, DRAWS_PER_CLASS, noise_scale=self.noise_scale)
        index, valid = choose_anchors(labels, correct, bank.num_classes, ANCHORS_PER_CLASS)
        target = torch.where(valid, classes[:, None], -1).flatten()
        usable = self.usable(bank)
        loss = sampled_contrast(embedding[index.flatten()], target, samples, usable, self.temperature)
        return {"loss_sampled_contrast": self.weight * factor * loss}
