"""Scores on class logits: of any classifier, of cosine classifiers, and with moments of the training set."""

from __future__ import annotations

import math

from torch import Tensor

from .outputs import MAX_LOGIT_MOMENTS, PixelOutputs
from .registry import register_score

# Logits are 10 * cosine in PAnS.
COSINE_SCALE = 10.0


@register_score("msp")
def msp(outputs: PixelOutputs) -> Tensor:
    """``1 - max_c softmax(z)_c`` (Hendrycks and Gimpel, ICLR 2017); in [0, 1 - 1/C]."""
    # max softmax = exp(max z - logsumexp z): no (C, H, W) map of probabilities.
    logits = outputs.logits
    return 1 - (logits.amax(dim=-3) - logits.logsumexp(dim=-3)).exp()


@register_score("max_logit")
def max_logit(outputs: PixelOutputs) -> Tensor:
    """``-max_c z_c`` (Hendrycks et al., ICML 2022)."""
    return -outputs.logits.amax(dim=-3)


@register_score("energy")
def energy(outputs: PixelOutputs) -> Tensor:
    """``-logsumexp_c z_c``, temperature 1 (Liu et al., NeurIPS 2020)."""
    return -outputs.logits.logsumexp(dim=-3)


@register_score("entropy")
def entropy(outputs: PixelOutputs) -> Tensor:
    """Entropy of the softmax divided by log C; in [0, 1]."""
    log_probability = outputs.logits.log_softmax(dim=-3)
    classes = outputs.logits.shape[-3]
    return -(log_probability.exp() * log_probability).sum(dim=-3) / math.log(classes)


@register_score("prototype_distance")
def prototype_distance(outputs: PixelOutputs) -> Tensor:
    """``1 - (max_c z_c + 10) / 20`` (PAnS; Fontanel et al., CVPR workshops 2021).

    Half of one minus the largest cosine: in [0, 1] on the logits of a cosine classifier. On any others it
    ranks pixels as max_logit does.
    """
    return 1 - (outputs.logits.amax(dim=-3) + COSINE_SCALE) / (2 * COSINE_SCALE)


def sml_score(logits: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """``-(max_c z_c - mean(k)) / std(k)`` with the predicted class ``k = argmax_c z_c`` (Standardized Max
    Logits, Jung et al., ICCV 2021): every class's confidence on one scale.

    Args:
        logits: (..., C, H, W) floating point.
        means, stds: (C,) mean and standard deviation of the largest logit of the training pixels that are
            predicted as each class; standard deviations positive.

    Returns:
        (..., H, W) in standard deviations, higher = more anomalous.
    """
    largest, predicted = logits.max(dim=-3)
    return (means[predicted] - largest) / stds[predicted]


@register_score("sml", needs=MAX_LOGIT_MOMENTS)
def sml(outputs: PixelOutputs) -> Tensor:
    """:func:`sml_score` with the moments of the training set."""
    assert outputs.max_logit_moments is not None
    return sml_score(outputs.logits, *outputs.max_logit_moments)
