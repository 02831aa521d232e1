"""Training losses of a pixel classifier, and labels at the resolution of features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

# Not 255: a component's index (class * M + component) may be 255 itself.
IGNORED_COMPONENT = -100
IGNORE_LABEL = 255


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
