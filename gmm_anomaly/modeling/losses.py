"""Training losses of pixel classifiers: cross-entropy, and contrasts with components and drawn vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.memory import ComponentGroups

# Not 255: a component's index (class * M + component) may be 255 itself.
IGNORED_COMPONENT = -100
IGNORE_LABEL = 255
# Of the contrast with drawn vectors; its interval is from one iteration that has it to the next.
ANCHORS_PER_CLASS, DRAWS_PER_CLASS, INTERVAL = 50, 32, 5


def resized_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """labels: (B, H, W) integer -> (B, h, w) int64 of another size, by nearest sampling."""
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def pixel_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_label: int = IGNORE_LABEL, average: str = "valid"
) -> Tensor:
    """Cross-entropy of class logits, upsampled bilinearly to the labels' size.

    Args:
        logits: (B, C, h, w) floating point.
        labels: (B, H, W) int64.
        ignore_label: pixels with this label have no loss.
        average: "valid" divides by the labelled pixels, "all" by all of them (the released GMMSeg code).

    Returns:
        A scalar; zero, with gradient zero, when no pixel is labelled.
    """
    # Contiguous while it is small: the softmax over classes copies full-size maps of any other layout.
    logits = logits.float().contiguous()
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_label, reduction="none")
    count = (labels != ignore_label).sum().clamp(min=1) if average == "valid" else max(losses.numel(), 1)
    return losses.sum() / count


def component_contrast(log_prob: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of all component log-densities against the assigned components (GMMSeg, Eq. 10).

    The paper weighs it with 0.01.

    Args:
        log_prob: (N, C, M) component log-densities.
        target: (N,) int64, ``class * M + component``, or :data:`IGNORED_COMPONENT`.

    Returns:
        A scalar, the mean over the pixels that have a target; zero when none has.
    """
    total = F.cross_entropy(log_prob.flatten(1), target, ignore_index=IGNORED_COMPONENT, reduction="sum")
    return total / (target != IGNORED_COMPONENT).sum().clamp(min=1)


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


@dataclass
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
    """

    weight: float = 0.05
    start: int = 1500
    ramp: int = 5000
    temperature: float = 0.1
    noise_scale: float = 0.5
    min_fill: float = 0.5

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
