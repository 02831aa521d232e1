"""What a metric's state is, and how it is read back from a dict or from what ``numpy.load`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

# What a state is: plain numbers, strings, lists of strings and arrays of numbers. So it can be pickled, sent
# to a rank, saved by numpy.savez, by json with the arrays as lists, and by torch with the arrays as tensors.
State = dict[str, Any]

FORMAT = 1


class Mergeable(Protocol):
    def settings(self) -> dict[str, Any]: ...


def check_alike(one: Mergeable, other: Mergeable) -> None:
    """Raise TypeError or ValueError unless both are the same kind of metrics, made with the same settings."""
    if type(one) is not type(other):
        raise TypeError(f"cannot merge {type(other).__name__} into {type(one).__name__}")
    mine, theirs = one.settings(), other.settings()
    different = [key for key in mine if mine[key] != theirs[key]]
    if different:
        found = ", ".join(f"{key} {mine[key]!r} and {theirs[key]!r}" for key in different)
        raise ValueError(f"cannot merge {type(one).__name__} made with different settings: {found}")


def header(metric: str) -> State:
    """First entries of a state: what it belongs to and how it is written."""
    return {"metric": metric, "format": FORMAT}


def check_header(state: Mapping[str, Any], metric: str) -> None:
    """Raise ValueError unless ``state`` is one of ``metric`` in the format of this version."""
    found = scalar(state, "metric"), scalar(state, "format")
    if found != (metric, FORMAT):
        raise ValueError(
            f"expected a state of {metric} in format {FORMAT}, found {found[0]} in format {found[1]}"
        )


def scalar(state: Mapping[str, Any], key: str) -> Any:
    """The plain number or string under ``key``; ``numpy.savez`` makes 0-d arrays of them."""
    return array(state, key).item()


def array(state: Mapping[str, Any], key: str, dtype: DTypeLike | None = None) -> np.ndarray:
    """The array under ``key``, with its ``dtype`` if JSON lost it. Raises ValueError without the key."""
    try:
        found = state[key]
    except KeyError:
        raise ValueError(f"the state lacks {key!r}; it holds {sorted(state)}") from None
    return np.asarray(found, dtype)
