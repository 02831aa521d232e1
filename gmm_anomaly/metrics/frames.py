"""Checks on what a metric is given for one image, and its split into known and anomalous pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

_HALF_INF = 0x7C00


def as_scores(score: Any, image: str) -> np.ndarray:
    """A real-valued array without NaN.

    Args:
        score: array of any shape, or anything ``numpy.asarray`` takes (a CPU tensor, nested lists).
        image: what to call the image in an error.

    Raises:
        TypeError: the values are not real numbers. ValueError: there are NaN among them.
    """
    array = np.asarray(score)
    if array.dtype.kind in "bui":
        array = array.astype(np.float64)
    elif array.dtype.kind != "f":
        raise TypeError(f"{image}: scores must be float16, float32 or float64, found {array.dtype}")
    missing = count_nan(array)
    if missing:
        raise ValueError(
            f"{image}: {missing} of {array.size} scores are NaN; only numbers and infinities can be ranked"
        )
    return array


def count_nan(array: np.ndarray) -> int:
    """Number of NaN in a float array."""
    if array.dtype == np.float16:  # numpy's own test converts each value first
        magnitude = np.ascontiguousarray(array).view(np.uint16) & np.uint16(0x7FFF)
        return int(np.count_nonzero(magnitude > _HALF_INF))
    return int(np.count_nonzero(np.isnan(array)))


def as_integers(values: Any, what: str, image: str) -> np.ndarray:
    """An integer or boolean array. Raises TypeError, naming it by ``what`` and ``image``, for others."""
    array = np.asarray(values)
    if array.dtype.kind not in "bui":
        raise TypeError(f"{image}: {what} must be an array of integers or booleans, found {array.dtype}")
    return array


def check_same_shape(first: np.ndarray, second: np.ndarray, names: str, image: str) -> None:
    """Raise ValueError unless the shapes agree; ``names`` says what the two arrays are."""
    if first.shape != second.shape:
        raise ValueError(f"{image}: {names} must have the same shape, found {first.shape} and {second.shape}")


def anomaly_masks(label: Any, image: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Masks of the known (label 0) and of the anomalous (label 1) pixels.

    Args:
        label: integers or booleans of any shape, 0 known, 1 anomaly, 255 void.
        image: what to call the image in an error.

    Returns:
        known, anomalous: boolean arrays of the label's shape; void: the number of void pixels.

    Raises:
        TypeError: labels are not integers. ValueError: there are other values than 0, 1 and 255.
    """
    array = as_integers(label, "label", image)
    known, anomalous = array == 0, array == 1
    void = int(np.count_nonzero(array == 255))
    if np.count_nonzero(known) + np.count_nonzero(anomalous) + void != array.size:
        others = np.setdiff1d(array, [0, 1, 255])
        listed = ", ".join(str(value) for value in others[:8]) + (", …" if len(others) > 8 else "")
        raise ValueError(
            f"{image}: labels must be 0 (known), 1 (anomaly) or 255 (void), found also {listed}; "
            "map the data set's label ids to these three first"
        )
    return known, anomalous, void


def to_precision(scores: np.ndarray, precision: str) -> tuple[np.ndarray, int]:
    """Round scores to ``float16`` or ``float32``.

    Returns:
        rounded: array of that dtype; saturated: how many finite scores became infinite, being out of range.
    """
    with np.errstate(over="ignore"):
        rounded = scores.astype(precision, copy=False)
    if scores.dtype.itemsize <= rounded.dtype.itemsize:
        return rounded, 0
    if precision == "float16":
        bits = np.ascontiguousarray(rounded).view(np.uint16)
        infinite = int(np.count_nonzero((bits & np.uint16(0x7FFF)) == _HALF_INF))
    else:
        infinite = int(np.count_nonzero(np.isinf(rounded)))
    return rounded, infinite - int(np.count_nonzero(np.isinf(scores))) if infinite else 0
