"""Scores on class densities: a pixel far from every component of every class is anomalous."""

from __future__ import annotations

from torch import Tensor

from .outputs import LOG_DENSITY, PixelOutputs
from .registry import register_score


@register_score("gmm_density", needs=LOG_DENSITY)
def gmm_density(outputs: PixelOutputs) -> Tensor:
    """``-max_c log p(x|c)``, before the LayerNorm over classes, which would remove the absolute likelihood
    (GMMSeg, section 4.3). In nats."""
    assert outputs.log_density is not None
    return -outputs.log_density.amax(dim=-3)


@register_score("gmm_likelihood", needs=LOG_DENSITY)
def gmm_likelihood(outputs: PixelOutputs) -> Tensor:
    """``-log sum_c p(x|c)``: negative log-likelihood under all classes together, up to a constant."""
    assert outputs.log_density is not None
    return -outputs.log_density.logsumexp(dim=-3)
