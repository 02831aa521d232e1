"""Closed-set metrics: IoU and accuracy from a confusion matrix, and the calibration of probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from gmm_anomaly.metrics.base import Metric, as_integers, as_scores, check_same_shape

Convention = Literal["mmseg", "pans"]
PER_CLASS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")

# Confidences are added as multiples of 2⁻³⁰: whole numbers, so order does not matter, with room in 64 bits
# for 8·10⁹ pixels. One bincount adds them as float64, which is exact for as many pixels as a chunk has.
_UNIT = 2.0**30
_CHUNK = 2**22
_ROUNDING = 1e-5  # how far float32 (and bfloat16-computed) probabilities may overshoot [0, 1]


class ConfusionMetrics(Metric):
    """IoU, accuracy, Dice, F-score, precision and recall over a data set.

    Counts are pooled over all images first. A prediction outside the classes is wrong: it counts against the
    recall of the labelled class and against nobody's precision.

    Args:
        num_classes: C; classes are 0 … C−1.
        class_names: C names, for tables and errors.
        ignore_label: label value whose pixels are left out.
        convention: ``"mmseg"`` (default): a class that is only ever predicted has IoU 0, which enters the
            mean; one that is neither predicted nor labelled is NaN and left out. ``"pans"``: classes without
            labelled pixels are NaN and left out, and 10⁻⁶ is added to the denominators of IoU and accuracy,
            as PAnS does.
    """

    SETTINGS = ("num_classes", "ignore_label", "convention", "class_names")
    COUNTS = ("images", "_counts")

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        ignore_label: int = 255,
        convention: Convention = "mmseg",
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, found {num_classes}")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"class_names must have {num_classes} names, found {len(class_names)}")
        if 0 <= ignore_label < num_classes:
            raise ValueError(f"ignore_label {ignore_label} is one of the {num_classes} classes")
        if convention not in get_args(Convention):
            raise ValueError(f"convention must be {' or '.join(get_args(Convention))}, found {convention!r}")
        self.num_classes, self.ignore_label, self.convention = int(num_classes), int(ignore_label), convention
        self.class_names = [str(name) for name in class_names] if class_names is not None else None
        self.images = 0
        # Rows: labelled class. Columns: predicted class, the last one for predictions outside the classes.
        self._counts = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: pixels by labelled (row) and predicted (column) class."""
        return self._counts[:, :-1].copy()

    def update(self, pred: Any, label: Any, name: str | None = None) -> None:
        """Count one image.

        Args:
            pred: (H, W) integers, the predicted classes.
            label: (H, W) integers, 0 … C−1 or ``ignore_label``.
            name: what to call the image in an error.

        Raises:
            ValueError: shapes that differ or other labels. TypeError: not integers. Nothing is counted then.
        """
        image = self._image(name)
        predictions, labels = as_integers(pred, "pred", image), as_integers(label, "label", image)
        check_same_shape(predictions, labels, "pred and label", image)
        valid = labels != self.ignore_label
        labels, predictions = labels[valid].astype(np.int64), predictions[valid].astype(np.int64)
        classes = self.num_classes
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            others = np.unique(labels[(labels < 0) | (labels >= classes)])[:8].tolist()
            raise ValueError(
                f"{image}: labels must be 0 to {classes - 1}, or {self.ignore_label} to be ignored; "
                f"found also {others}"
            )
        if predictions.size and (predictions.min() < 0 or predictions.max() >= classes):
            predictions[(predictions < 0) | (predictions >= classes)] = classes
        labels *= classes + 1
        labels += predictions
        self._counts += np.bincount(labels, minlength=self._counts.size).reshape(self._counts.shape)
        self.images += 1

    def compute(self) -> dict[str, Any]:
        """The numbers of everything counted so far.

        Returns:
            Fractions ``aAcc`` (pixel accuracy), ``fwIoU`` (IoU weighted by labelled pixels) and ``mIoU``,
            ``mAcc``, ``mDice``, ``mFscore``, ``mPrecision``, ``mRecall``: means over the classes that are not
            NaN; without the "m", lists with one number a class. ``Acc`` is the recall. ``class_names``,
            ``convention``, ``images``, ``pixels``, ``outside`` (pixels predicted outside the classes).
            ``note``: what is undefined (NaN), or None.
        """
        right = np.diagonal(self._counts).astype(np.float64)
        labelled, predicted = self._counts.sum(axis=1), self._counts[:, :-1].sum(axis=0)
        pixels = int(labelled.sum())
        epsilon = 1e-6 if self.convention == "pans" else 0.0
        # The convention's point of difference: whether a class nobody labelled has an IoU and a Dice.
        counted = labelled > 0 if self.convention == "pans" else labelled + predicted > 0

        precision, recall = _ratio(right, predicted, predicted > 0), _ratio(right, labelled, labelled > 0)
        classes = {
            "IoU": _ratio(right, labelled + predicted - right + epsilon, counted),
            "Acc": _ratio(right, labelled + epsilon, labelled > 0),
            "Dice": _ratio(2 * right, labelled + predicted, counted),
            "Fscore": _ratio(2 * precision * recall, precision + recall, precision + recall > 0),
            "Precision": precision,
            "Recall": recall,
        }
        iou = classes["IoU"]
        weighted = math.fsum(np.where(labelled > 0, labelled * iou, 0.0)) / pixels if pixels else math.nan
        return {
            **{f"m{key}": _mean_of_defined(classes[key]) for key in PER_CLASS},
            "aAcc": float(right.sum() / pixels) if pixels else math.nan,
            "fwIoU": weighted,
            **{key: classes[key].tolist() for key in PER_CLASS},
            "class_names": self.class_names,
            "convention": self.convention,
            "images": self.images,
            "pixels": pixels,
            "outside": int(self._counts[:, -1].sum()),
            "note": None if pixels else "no labelled pixel: every number is undefined",
        }


class CalibrationMetrics(Metric):
    """Expected calibration error of closed-set predictions.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), Eq. 5: bins are equally wide and
    closed on the right, (b/M, (b+1)/M]; confidence 0 lies in the first.

    Args:
        num_bins: M.
        ignore_label: label value whose pixels are left out.
    """

    SETTINGS = ("num_bins", "ignore_label")
    COUNTS = ("images", "_pixels", "_correct", "_confidence")

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
        image = self._image(name)
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


def _ratio(numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Quotient where it is defined, NaN elsewhere."""
    result = np.full(len(numerator), math.nan)
    return np.divide(numerator, denominator, out=result, where=defined)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return math.fsum(defined) / len(defined) if len(defined) else math.nan
