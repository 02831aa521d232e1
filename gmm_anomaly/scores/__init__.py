"""Anomaly scores. Importing this package registers all of them; it needs torch and fvcore only."""

from .masks import mask_void_score, maskomaly_score, rba_score
from .outputs import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    MASKS,
    MAX_LOGIT_MOMENTS,
    OUTLIER_RATIO,
    MaskOutputs,
    PixelOutputs,
    semantic_map,
)
from .pixels import sml_score
from .registry import SCORE_REGISTRY, get_scores, known_scores, register_score

__all__ = [
    "FEATURE_DISTANCE",
    "LOGITS",
    "LOG_DENSITY",
    "MASKS",
    "MAX_LOGIT_MOMENTS",
    "OUTLIER_RATIO",
    "SCORE_REGISTRY",
    "MaskOutputs",
    "PixelOutputs",
    "get_scores",
    "known_scores",
    "mask_void_score",
    "maskomaly_score",
    "rba_score",
    "register_score",
    "semantic_map",
    "sml_score",
]
