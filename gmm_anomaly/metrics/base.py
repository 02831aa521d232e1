"""What all metrics share: counts that merge, and checks on what they are given for one image."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np


class Metric:
    """Whole-number counts over images, the same whatever their order and however they were sharded.

    A subclass names its attributes: in ``SETTINGS`` the arguments it was made with, in ``COUNTS`` numbers and
    integer arrays that are added up, the number of images first. Objects can be pickled, for other processes.
    """

    SETTINGS: ClassVar[tuple[str, ...]]
    COUNTS: ClassVar[tuple[str, ...]]

    def settings(self) -> dict[str, Any]:
        """What the metrics were made with."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def merge(self, other: Any) -> None:
        """Add what ``other`` has counted; ``other`` keeps it.

        Raises:
            TypeError: another kind of metrics. ValueError: they were made with other settings.
        """
        if type(self) is not type(other):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        mine, theirs = self.settings(), other.settings()
        found = [f"{key} {mine[key]!r} and {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]
        if found:
            raise ValueError(
                f"cannot merge {type(self).__name__} made with different settings: {', '.join(found)}"
            )
        self._add(other)

    def _add(self, other: Any) -> None:
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _image(self, name: str | None) -> str:
        """What to call the next image in an error."""
        return f"image {name!r}" if name is not None else f"image number {getattr(self, self.COUNTS[0]) + 1}"


def as_scores(score: Any, image: str) -> np.ndarray:
    """An array of floats without NaN; integers become the smallest floats that hold them, float64 the widest.

    Raises:
        TypeError: no real numbers. ValueError: NaN.
    """
    array = np.asarray(score)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{image}: scores must be real numbers, found {array.dtype}")
    array = array.astype(np.result_type(array, np.float16), copy=False)
    if missing := np.count_nonzero(np.isnan(array)):
        raise ValueError(
            f"{image}: {missing} of {array.size} scores are NaN; only numbers and infinities can be ranked"
        )
    return array


def as_integers(values: Any, what: str, image: str) -> np.ndarray:
    """An integer or boolean array. Raises TypeError, naming it by ``what`` and ``image``, for others."""
    array = np.asarray(values)
    if array.dtype.kind not in "bui":
        raise TypeError(f"{image}: {what} must be an array of integers or booleans, found {array.dtype}")
    return array


def check_same_shape(first: Any, second: Any, names: str, image: str) -> None:
    """Raise ValueError unless the shapes agree; ``names`` says what the two arrays are."""
    if first.shape != second.shape:
        found = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"{image}: {names} must have the same shape, found {found}")


def anomaly_masks(label: Any, image: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Masks of the known (label 0) and of the anomalous pixels (1), and the number of void ones (255).

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
    """Scores rounded to ``float16`` or ``float32``, and how many of the finite ones became infinite."""
    with np.errstate(over="ignore"):
        rounded = scores.astype(precision, copy=False)
    if scores.dtype.itemsize <= rounded.dtype.itemsize:
        return rounded, 0
    infinite = np.count_nonzero(np.isinf(rounded))
    return rounded, int(infinite - np.count_nonzero(np.isinf(scores))) if infinite else 0
