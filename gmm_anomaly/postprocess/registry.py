"""Registry of post-processes: pure functions of a score map, the predicted classes and the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fvcore.common.registry import Registry
from torch import Tensor

PostProcess = Callable[[Tensor, Tensor, Tensor], Tensor]

POSTPROCESS_REGISTRY: Registry = Registry("POSTPROCESS")
POSTPROCESS_REGISTRY.__doc__ = """
Functions ``(score (H, W) float32, prediction (H, W) int64, image (3, h, w), 0 to 255) -> (H, W) float32`` at
the output's resolution; higher stays more anomalous. The prediction is the model's, and the image is the one
that the model saw, at its size and in its channel order: a post-process never sees a label.
"""


def register_postprocess(name: str) -> Callable[[PostProcess], PostProcess]:
    """Decorator that registers a post-process under ``name`` (the name used in ``TEST.POSTPROCESS``)."""

    def register(function: PostProcess) -> PostProcess:
        function.__name__ = name
        POSTPROCESS_REGISTRY.register(function)
        return function

    return register


def known_postprocesses() -> list[str]:
    """Names of all registered post-processes, sorted."""
    return sorted(name for name, _ in POSTPROCESS_REGISTRY)


def get_postprocesses(names: Sequence[str], *, key: str = "TEST.POSTPROCESS") -> dict[str, PostProcess]:
    """Look up post-processes by name, in the order they are applied; an empty list is fine.

    Args:
        names: as in ``TEST.POSTPROCESS``.
        key: the config key they come from, for errors.

    Raises:
        ValueError: an unknown name, or one given twice.
    """
    found: dict[str, PostProcess] = {}
    for name in names:
        if name not in POSTPROCESS_REGISTRY:
            raise ValueError(
                f"{key}: unknown post-process {name!r}; known are {', '.join(known_postprocesses())}"
            )
        if name in found:
            raise ValueError(f"{key}: expected each post-process at most once, found {', '.join(names)}")
        found[name] = POSTPROCESS_REGISTRY.get(name)
    return found


def chain_name(score: str, postprocesses: Sequence[str]) -> str:
    """The name of a score after post-processes, ``"score+first+second"``."""
    return "+".join([score, *postprocesses])


def apply_chain(
    score: Tensor, prediction: Tensor, image: Tensor, postprocesses: Mapping[str, PostProcess]
) -> Tensor:
    """Apply post-processes one after the other.

    Args:
        score: (H, W) floating point, higher = more anomalous.
        prediction: (H, W) integer, the model's predicted classes at the same resolution.
        image: (3, h, w), 0 to 255, as the model saw it.
        postprocesses: from :func:`get_postprocesses`.

    Raises:
        ValueError: maps that are not two-dimensional and of one size.
    """
    if score.dim() != 2 or score.shape != prediction.shape:
        raise ValueError(
            f"score and prediction: expected two maps (H, W) of one size, found {tuple(score.shape)} and "
            f"{tuple(prediction.shape)}"
        )
    for postprocess in postprocesses.values():
        score = postprocess(score, prediction, image)
    return score
