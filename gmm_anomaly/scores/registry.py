"""Registry of anomaly scores: pure functions of a model's outputs, higher = more anomalous."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fvcore.common.registry import Registry
from torch import Tensor

from .outputs import PixelOutputs

Score = Callable[[PixelOutputs], Tensor]

SCORE_REGISTRY: Registry = Registry("SCORE")
SCORE_REGISTRY.__doc__ = """
Functions ``PixelOutputs -> (..., H, W) float32``, higher = more anomalous. A score never sees a label.
"""

# Scores that need class densities, which only a generative classifier has.
_GENERATIVE: set[str] = set()


def register_score(name: str, *, needs_density: bool = False) -> Callable[[Score], Score]:
    """Decorator that registers a score under ``name`` (the name used in ``TEST.SCORES``)."""

    def register(function: Score) -> Score:
        function.__name__ = name
        SCORE_REGISTRY.register(function)
        if needs_density:
            _GENERATIVE.add(name)
        return function

    return register


def known_scores() -> list[str]:
    """Names of all registered scores, sorted."""
    return sorted(name for name, _ in SCORE_REGISTRY)


def get_scores(names: Sequence[str], *, generative: bool) -> dict[str, Score]:
    """Look up scores by name.

    Args:
        names: as in ``TEST.SCORES``.
        generative: whether the model's classifier gives class densities.

    Raises:
        ValueError: no name, an unknown name, or a score that needs densities the model does not have.
    """
    if not names:
        raise ValueError(f"TEST.SCORES: expected at least one of {', '.join(known_scores())}; found none")
    for name in names:
        if name not in SCORE_REGISTRY:
            raise ValueError(f"TEST.SCORES: unknown score {name!r}; known are {', '.join(known_scores())}")
        if name in _GENERATIVE and not generative:
            usable = ", ".join(known for known in known_scores() if known not in _GENERATIVE)
            raise ValueError(
                f"TEST.SCORES: {name!r} needs class densities, which this model's classifier does not have; "
                "use a "
                f'generative one (MODEL.CLASSIFIER.NAME "gmm") or score by {usable}'
            )
    return {name: SCORE_REGISTRY.get(name) for name in names}
