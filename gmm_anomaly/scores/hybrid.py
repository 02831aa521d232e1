"""Scores on distances of backbone features, alone and together with the classifier's own evidence."""

from __future__ import annotations

from torch import Tensor

from .density import gmm_density
from .outputs import FEATURE_DISTANCE, PixelOutputs
from .registry import register_score
from .softmax import energy


@register_score("feature_distance", needs=FEATURE_DISTANCE)
def feature_distance(outputs: PixelOutputs) -> Tensor:
    """Log Mahalanobis distances to the known classes on several backbone levels (Lee et al., NeurIPS 2018),
    and on the embedding, standardised on the training set and summed. In standard deviations."""
    assert outputs.feature_distance is not None
    return outputs.feature_distance


@register_score("hybrid", needs=FEATURE_DISTANCE)
def hybrid(outputs: PixelOutputs) -> Tensor:
    """The classifier's own evidence, standardised on the training set, plus ``feature_distance``.

    What was trained to tell the known classes apart and what was not err on different pixels.
    """
    assert outputs.feature_distance is not None and outputs.evidence_moments is not None
    mean, std = outputs.evidence_moments
    return (own_evidence(outputs) - mean) / std + outputs.feature_distance


def own_evidence(outputs: PixelOutputs) -> Tensor:
    """What the classifier itself says against all classes: ``gmm_density``, or ``energy`` where that is asked
    for or there are no densities. (..., H, W)."""
    if outputs.log_density is None or outputs.evidence == "energy":
        return energy(outputs)
    return gmm_density(outputs)
