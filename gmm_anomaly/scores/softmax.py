"""Scores on class logits, for any classifier."""

from __future__ import annotations

import math

from torch import Tensor

from .outputs import PixelOutputs
from .registry import register_score


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
