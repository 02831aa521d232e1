"""Closed-set segmentation metrics from a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from gmm_anomaly.metrics.frames import as_integers, check_same_shape
from gmm_anomaly.metrics.state import State, array, check_alike, check_header, header, scalar

Convention = Literal["mmseg", "pans"]
PER_CLASS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")


class ConfusionMetrics:
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
        image = f"image {name!r}" if name is not None else f"image number {self.images + 1}"
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

    def merge(self, other: ConfusionMetrics) -> None:
        """Add what ``other`` has counted; ``other`` keeps it. Both must have been made alike."""
        check_alike(self, other)
        self._counts += other._counts
        self.images += other.images

    def settings(self) -> dict[str, Any]:
        """What the metrics were made with."""
        names = ("num_classes", "ignore_label", "convention")
        return {name: getattr(self, name) for name in (*names, "class_names")}

    def state(self) -> State:
        """Everything counted so far, as numbers, strings and arrays (no class names: an empty list)."""
        settings = self.settings() | {"class_names": self.class_names or []}
        return header("ConfusionMetrics") | settings | {"images": self.images, "counts": self._counts.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ConfusionMetrics:
        """The metrics whose :meth:`state` this is, also read back from ``.npz``, JSON or torch."""
        check_header(state, "ConfusionMetrics")
        metrics = cls(
            scalar(state, "num_classes"),
            array(state, "class_names").tolist() or None,
            scalar(state, "ignore_label"),
            scalar(state, "convention"),
        )
        metrics.images = scalar(state, "images")
        metrics._counts = array(state, "counts", np.int64).copy()
        return metrics

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


def _ratio(numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Quotient where it is defined, NaN elsewhere."""
    result = np.full(len(numerator), math.nan)
    return np.divide(numerator, denominator, out=result, where=defined)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return math.fsum(defined) / len(defined) if len(defined) else math.nan
