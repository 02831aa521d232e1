"""Scores on class densities and on distances of features: how far a pixel is from everything known."""

from __future__ import annotations

from torch import Tensor

from .logits import energy
from .outputs import FEATURE_DISTANCE, LOG_DENSITY, PixelOutputs
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


@register_score("feature_distance", needs=FEATURE_DISTANCE)
def feature_distance(outputs: PixelOutputs) -> Tensor:
    """Log Mahalanobis distances to the known classes on several backbone levels (Lee et al., NeurIPS 2018),
    and on the embedding, standardised on the training set and summed. In standard deviations."""
    assert outputs.feature_distance is not None
    return outputs.feature_distance


@register_score("hybrid", needs=FEATURE_DISTANCE)
def hybrid(outputs: PixelOutputs) -> Tensor:
    """The classifier's own score, standardised on the training set, plus ``feature_distance``.

    What was trained to tell the known classes apart and what was not err on different pixels.
    """
    assert outputs.feature_distance is not None and outputs.hybrid_moments is not None
    mean, std = outputs.hybrid_moments
    return (hybrid_part(outputs) - mean) / std + outputs.feature_distance


def hybrid_part(outputs: PixelOutputs) -> Tensor:
    """What "hybrid" takes from the classifier, (..., H, W): ``gmm_density``, or ``energy`` where that is
    asked for or there are no densities."""
    if outputs.log_density is None or outputs.hybrid_with == "energy":
        return energy(outputs)
    return gmm_density(outputs)
