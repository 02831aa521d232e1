"""What a model gives a score to work on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .mask_outputs import MaskOutputs

# Kinds of outputs that a score may need. Every model gives logits.
LOGITS = "logits"
LOG_DENSITY = "log_density"
MASKS = "masks"
FEATURE_DISTANCE = "feature_distance"
MAX_LOGIT_MOMENTS = "max_logit_moments"


@dataclass(frozen=True)
class PixelOutputs:
    """Outputs of a model.

    Attributes:
        logits: (..., C, H, W) float32 class logits; of a mask model its semantic evidence
            ``sum_i p_i(c) m_i`` as it is, without a logarithm.
        log_density: (..., C, H, W) float32 class log-densities in nats, where the classifier is generative.
        feature_distance: (..., H, W) float32, where the model measures distances on backbone features: their
            standardised logarithms, summed over the levels.
        evidence: what of the classifier "hybrid" adds to the distances, "density" or "energy" (where there is
            no density always the energy).
        evidence_moments: mean and standard deviation of that over labelled training pixels, where
            ``feature_distance`` is.
        max_logit_moments: (C,) mean and (C,) standard deviation of the largest logit of the training pixels
            predicted as each class, where the model has measured them.
        masks: the masks and their classes, of one image, where the model is a mask model.
    """

    logits: Tensor
    log_density: Tensor | None = None
    feature_distance: Tensor | None = None
    evidence: str = "density"
    evidence_moments: tuple[Tensor, Tensor] | None = None
    max_logit_moments: tuple[Tensor, Tensor] | None = None
    masks: MaskOutputs | None = None
