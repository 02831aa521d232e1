"""Standardized max logits (Jung et al., ICCV 2021): every class's confidence on one scale."""

from __future__ import annotations

from torch import Tensor

from .outputs import MAX_LOGIT_MOMENTS, PixelOutputs
from .registry import register_score


def sml_score(logits: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """``-(max_c z_c - mean(k)) / std(k)`` with the predicted class ``k = argmax_c z_c``.

    Args:
        logits: (..., C, H, W) floating point.
        means, stds: (C,) mean and standard deviation of the largest logit of the training pixels that are
            predicted as each class; standard deviations positive.

    Returns:
        (..., H, W) in standard deviations, higher = more anomalous.

    Raises:
        ValueError: moments of another number of classes.
    """
    classes = logits.shape[-3]
    if means.shape != (classes,) or stds.shape != (classes,):
        raise ValueError(
            f"means and stds: expected one number for each of the {classes} classes, found shapes "
            f"{tuple(means.shape)} and {tuple(stds.shape)}"
        )
    largest, predicted = logits.max(dim=-3)
    return (means[predicted] - largest) / stds[predicted]


@register_score("sml", needs=MAX_LOGIT_MOMENTS)
def sml(outputs: PixelOutputs) -> Tensor:
    """:func:`sml_score` with the moments of the training set."""
    assert outputs.max_logit_moments is not None
    return sml_score(outputs.logits, *outputs.max_logit_moments)
