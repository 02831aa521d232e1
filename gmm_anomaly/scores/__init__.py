"""Anomaly scores. Importing this package registers all of them; it needs torch and fvcore only."""

from . import density, softmax  # noqa: F401  (registration)
from .outputs import PixelOutputs
from .registry import SCORE_REGISTRY, get_scores, known_scores, register_score

__all__ = ["SCORE_REGISTRY", "PixelOutputs", "get_scores", "known_scores", "register_score"]
