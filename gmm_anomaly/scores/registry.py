"""Registry of anomaly scores: pure functions of a model's outputs, higher = more anomalous."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fvcore.common.registry import Registry
from torch import Tensor

from .outputs import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    MASKS,
    MAX_LOGIT_MOMENTS,
    OUTLIER_RATIO,
    PixelOutputs,
)

Score = Callable[[PixelOutputs], Tensor]

SCORE_REGISTRY: Registry = Registry("SCORE")
SCORE_REGISTRY.__doc__ = """
Functions ``PixelOutputs -> (..., H, W) float32``, higher = more anomalous. A score never sees a label.
"""

# What each score needs, and for the errors: what that is, and which models give it.
_NEEDS: dict[str, str] = {}
_SOURCES = {
    LOG_DENSITY: (
        "class densities, which this model's classifier does not have",
        'a generative one (MODEL.CLASSIFIER.NAME "gmm")',
    ),
    FEATURE_DISTANCE: (
        "distances of backbone features, which this model does not measure",
        "a config that names levels of the backbone in MODEL.FEATURE_DISTANCE.FEATURES",
    ),
    MAX_LOGIT_MOMENTS: (
        "moments of the largest logit, which this model did not measure on the training set",
        'a pixel classifier (MODEL.META_ARCHITECTURE "AnomalySegmentor") built with it in TEST.SCORES',
    ),
    OUTLIER_RATIO: (
        "a density of outliers, which this model does not have",
        "a config with MODEL.OUTLIER.NAME",
    ),
    MASKS: (
        "masks with classes, which this model does not have",
        'a mask model (MODEL.META_ARCHITECTURE "MaskAnomalySegmentor")',
    ),
}


def register_score(name: str, *, needs: str = LOGITS) -> Callable[[Score], Score]:
    """Decorator that registers a score under ``name`` (the name used in ``TEST.SCORES``).

    Args:
        needs: the kind of outputs it works on: ``LOGITS``, ``LOG_DENSITY``,
            ``FEATURE_DISTANCE``, ``MAX_LOGIT_MOMENTS``, ``OUTLIER_RATIO`` or ``MASKS``.
    """

    def register(function: Score) -> Score:
        function.__name__ = name
        SCORE_REGISTRY.register(function)
        _NEEDS[name] = needs
        return function

    return register


def known_scores() -> list[str]:
    """Names of all registered scores, sorted."""
    return sorted(name for name, _ in SCORE_REGISTRY)


def get_scores(names: Sequence[str], *, given: Collection[str]) -> dict[str, Score]:
    """Look up scores by name.

    Args:
        names: as in ``TEST.SCORES``.
        given: the kinds of outputs that the model gives: of ``LOGITS``, ``LOG_DENSITY``,
            ``FEATURE_DISTANCE``, ``MAX_LOGIT_MOMENTS``, ``OUTLIER_RATIO`` and ``MASKS``.

    Raises:
        ValueError: no name, an unknown name, or a score that needs outputs the model does not give.
    """
    if not names:
        raise ValueError(f"TEST.SCORES: expected at least one of {', '.join(known_scores())}; found none")
    found: dict[str, Score] = {}
    for name in names:
        if name not in SCORE_REGISTRY:
            raise ValueError(f"TEST.SCORES: unknown score {name!r}; known are {', '.join(known_scores())}")
        if _NEEDS[name] not in given:
            what, source = _SOURCES[_NEEDS[name]]
            usable = ", ".join(known for known in known_scores() if _NEEDS[known] in given)
            raise ValueError(f"TEST.SCORES: {name!r} needs {what}; use {source} or score by {usable}")
        found[name] = SCORE_REGISTRY.get(name)
    return found
