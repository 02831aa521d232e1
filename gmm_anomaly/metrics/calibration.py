"""Calibration of closed-set predictions: expected calibration error and reliability curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gmm_anomaly.metrics.frames import as_integers, as_scores, check_same_shape
from gmm_anomaly.metrics.state import State, array, check_alike, check_header, header, scalar

# Confidences are added as multiples of 2⁻³⁰: whole numbers, so order does not matter, with room in 64 bits
# for 8·10⁹ pixels. One bincount adds them as float64, which is exact for as many pixels as a chunk has.
_UNIT = 2.0**30
_CHUNK = 2**22
_ROUNDING = 1e-5  # how far float32 (and bfloat16-computed) probabilities may overshoot [0, 1]


class CalibrationMetrics:
    """Expected calibration error of closed-set predictions.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), Eq. 5: bins are equally wide and
    closed on the right, (b/M, (b+1)/M]; confidence 0 lies in the first.

    Args:
        num_bins: M.
        ignore_label: label value whose pixels are left out.
    """

    def __init__(self, num_bins: int = 15, ignore_label: int = 255) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, found {num_bins}")
        self.num_bins, self.ignore_label = int(num_bins), int(ignore_label)
        self.images = 0
        self._pixels = np.zeros(self.num_bins, np.int64)
        self._correct = np.zeros(self.num_bins, np.int64)
        self._confidence = np.zeros(self.num_bins, np.int64)

    def update(
        self,
        confidence: Any,
        correct: Any = None,
        *,
        pred: Any = None,
        label: Any = None,
        name: str | None = None,
    ) -> None:
        """Count one image, given either ``correct`` or both ``pred`` and ``label``.

        Args:
            confidence: (H, W) float in [0, 1], the probability of the predicted class.
            correct: (H, W) bool, whether the prediction is right.
            pred: (H, W) integers, the predicted classes.
            label: (H, W) integers; pixels with ``ignore_label`` are left out. Optional beside ``correct``.
            name: what to call the image in an error.

        Raises:
            ValueError: NaN or values outside [0, 1], shapes that differ, or arguments missing. TypeError: not
                numbers, or ``correct`` not boolean. Nothing is counted then.
        """
        image = f"image {name!r}" if name is not None else f"image number {self.images + 1}"
        values = as_scores(confidence, image)
        labels = None if label is None else as_integers(label, "label", image)
        if (correct is None) == (pred is None) or (pred is not None and labels is None):
            raise ValueError(f"{image}: give either correct, or both pred and label")
        if pred is not None:
            predictions = as_integers(pred, "pred", image)
            assert labels is not None
            check_same_shape(predictions, labels, "pred and label", image)
            right = predictions == labels
        else:
            right = as_integers(correct, "correct", image)
            if right.dtype != np.bool_:
                raise TypeError(f"{image}: correct must be boolean, found {right.dtype}")
        check_same_shape(values, right, "confidence and prediction", image)
        if labels is not None:
            check_same_shape(values, labels, "confidence and label", image)
            valid = labels != self.ignore_label
            values, right = values[valid], right[valid]
        if values.size and (values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING):
            raise ValueError(
                f"{image}: confidence must lie in [0, 1], found {values.min():.6g} to {values.max():.6g}; "
                "give the probability of the predicted class, not a logit"
            )
        for start in range(0, values.size, _CHUNK):
            self._count(values.ravel()[start : start + _CHUNK], right.ravel()[start : start + _CHUNK])
        self.images += 1

    def _count(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        # In float64 the product of a float32 and a small number is exact, so the bin's edges are too.
        values = np.clip(confidence.astype(np.float64), 0.0, 1.0)
        bins = np.maximum(np.ceil(values * self.num_bins).astype(np.int64) - 1, 0)
        values *= _UNIT
        np.rint(values, out=values)
        total = np.bincount(bins, weights=values, minlength=self.num_bins)
        pixels = np.bincount(bins + self.num_bins * correct, minlength=2 * self.num_bins)
        self._confidence += total.astype(np.int64)
        self._pixels += pixels[: self.num_bins] + pixels[self.num_bins :]
        self._correct += pixels[self.num_bins :]

    def merge(self, other: CalibrationMetrics) -> None:
        """Add what ``other`` has counted; ``other`` keeps it. Both must have been made alike."""
        check_alike(self, other)
        self._pixels += other._pixels
        self._correct += other._correct
        self._confidence += other._confidence
        self.images += other.images

    def settings(self) -> dict[str, Any]:
        """What the metrics were made with."""
        return {"num_bins": self.num_bins, "ignore_label": self.ignore_label}

    def state(self) -> State:
        """Everything counted so far, as numbers, strings and arrays."""
        return {
            **header("CalibrationMetrics"),
            **self.settings(),
            "images": self.images,
            "pixels": self._pixels.copy(),
            "correct": self._correct.copy(),
            "confidence": self._confidence.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CalibrationMetrics:
        """The metrics whose :meth:`state` this is, also read back from ``.npz``, JSON or torch."""
        check_header(state, "CalibrationMetrics")
        metrics = cls(scalar(state, "num_bins"), scalar(state, "ignore_label"))
        metrics.images = scalar(state, "images")
        metrics._pixels, metrics._correct, metrics._confidence = (
            array(state, name, np.int64).copy() for name in ("pixels", "correct", "confidence")
        )
        return metrics

    def curve(self) -> dict[str, np.ndarray]:
        """The reliability curve.

        Returns:
            ``edges`` (M+1,) of the bins; ``confidence`` and ``accuracy`` (M,) float64, the means of each bin,
            NaN in empty ones; ``pixels`` (M,) int64.
        """
        filled = np.maximum(self._pixels, 1)
        empty = self._pixels == 0
        return {
            "edges": np.linspace(0.0, 1.0, self.num_bins + 1),
            "confidence": np.where(empty, math.nan, self._confidence / _UNIT / filled),
            "accuracy": np.where(empty, math.nan, self._correct / filled),
            "pixels": self._pixels.copy(),
        }

    def compute(self) -> dict[str, Any]:
        """The numbers of everything counted so far.

        Returns:
            Fractions ``ECE`` (mean over pixels of |accuracy − confidence| of their bin), ``MCE`` (the largest
            gap of a bin), ``accuracy`` and ``confidence`` over all pixels; ``num_bins``, ``images``,
            ``pixels``.
            ``note``: why the numbers are undefined (NaN), or None.
        """
        pixels = int(self._pixels.sum())
        gaps = np.abs(self._correct - self._confidence / _UNIT)  # bin size times gap
        filled = self._pixels > 0
        return {
            "ECE": math.fsum(gaps) / pixels if pixels else math.nan,
            "MCE": float((gaps[filled] / self._pixels[filled]).max()) if pixels else math.nan,
            "accuracy": int(self._correct.sum()) / pixels if pixels else math.nan,
            "confidence": int(self._confidence.sum()) / _UNIT / pixels if pixels else math.nan,
            "num_bins": self.num_bins,
            "images": self.images,
            "pixels": pixels,
            "note": None if pixels else "no labelled pixel: every number is undefined",
        }
