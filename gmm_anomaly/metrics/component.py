"""SegmentMeIfYouCan's component metrics: sIoU of anomalies, PPV of predictions, mean F1 over thresholds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from gmm_anomaly.metrics.base import Metric, anomaly_masks, as_scores, check_same_shape

THRESHOLDS = np.linspace(0.25, 0.75, 11)  # as the reference has them: the eighth is 0.6000000000000001
# Lower limits of the size classes in pixels: squares of 10, 20, 40 … pixels a side.
SIZE_LIMITS = (0, 100, 400, 1600, 6400, 25600, 102400)
FOUND = 0.5  # sIoU from which an anomaly counts as found


class FrameComponents(NamedTuple):
    """Whole numbers of one frame from which the metrics follow; components in the order of their labels.

    Attributes:
        anomalies: (G, 2) int64, per anomaly the numerator and the denominator of its sIoU.
        predictions: (P, 2) int64, per predicted component its pixels on anomalies and all its pixels.
    """

    anomalies: np.ndarray
    predictions: np.ndarray


def frame_components(
    predicted: np.ndarray, label: np.ndarray, min_prediction_size: int, min_anomaly_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the predicted components of one frame with the anomalies, by the rules of the benchmark.

    Void pixels are taken out of the prediction, then both masks are labelled with 8-connectivity. Predicted
    components below their size limit are dropped; anomalies below theirs become void, and predicted pixels on
    them are cut away without labelling again. If the background of the anomalies is itself smaller than that
    limit, it becomes void in the same way (as the reference does).

    For an anomaly k let K be the predicted components that touch it, I = |k ∩ K| and A the pixels of K on
    other anomalies; its sIoU is I / (|K| + |k| − I − A). A prediction's PPV is the share of its pixels on
    anomalies.

    Args:
        predicted: (H, W) bool.
        label: (H, W), 0 known, 1 anomaly, 255 void.
        min_prediction_size, min_anomaly_size: smallest sizes kept, in pixels.

    Returns:
        (G, 3) int64, per anomaly the numerator and the denominator of its sIoU and its size; (P, 2) int64,
        per predicted component its pixels on anomalies and all its pixels. In the order of their labels.
    """
    anomalous = label == 1
    predicted = predicted & (label != 255)
    anomaly_count, anomaly_of = cv2.connectedComponents(anomalous.view(np.uint8), connectivity=8)
    prediction_count, prediction_of = cv2.connectedComponents(predicted.view(np.uint8), connectivity=8)
    anomaly_size = _sizes(anomaly_of[anomalous], anomaly_count, label.size)
    at = np.flatnonzero(predicted)
    prediction_at, anomaly_at = prediction_of.ravel()[at], anomaly_of.ravel()[at]
    prediction_size = _sizes(prediction_at, prediction_count, label.size)

    # Contingency table as a list of its filled cells, the background (number 0) of either side left out.
    both = anomaly_at > 0
    cells = anomaly_at[both].astype(np.int64) * prediction_count + prediction_at[both]
    cell, overlap = np.unique(cells, return_counts=True)
    anomaly, prediction = np.divmod(cell, prediction_count)

    large = prediction_size >= min_prediction_size
    kept = anomaly_size >= min_anomaly_size
    large[0] = False
    on_background = np.where(kept[0], prediction_size - _sums(prediction, overlap, prediction_count), 0)
    kept[0] = False

    used = large[prediction] & kept[anomaly]
    anomaly, prediction, overlap = anomaly[used], prediction[used], overlap[used]
    on_anomalies = _sums(prediction, overlap, prediction_count)
    remaining = np.where(large, on_background + on_anomalies, 0)

    hit = _sums(anomaly, overlap, anomaly_count)
    touching = _sums(anomaly, remaining[prediction], anomaly_count)
    # A = (touching predictions on any anomaly) − I, so that |K| + |k| − I − A needs no I.
    union = touching + anomaly_size - _sums(anomaly, on_anomalies[prediction], anomaly_count)
    left = remaining > 0
    return (
        np.stack([hit[kept], union[kept], anomaly_size[kept]], axis=1),
        np.stack([on_anomalies[left], remaining[left]], axis=1),
    )


def _sizes(foreground: np.ndarray, components: int, pixels: int) -> np.ndarray:
    """Pixels of each component given the numbers of the foreground pixels; entry 0 is the background."""
    sizes = np.bincount(foreground, minlength=components)
    sizes[0] = pixels - foreground.size
    return sizes


def _sums(index: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Sum of the ``values`` at each index, int64 (exact: sums of pixels stay far below 2⁵³)."""
    return np.bincount(index, weights=values, minlength=length).astype(np.int64)


class ComponentMetrics(Metric):
    """Component metrics over a data set, at one threshold on the score.

    A pixel is predicted anomalous where score > threshold, as in the benchmark's code, or with ``inclusive``
    where score ≥ threshold; compared exactly whatever the score's dtype. (Under numpy 1 the reference code
    rounded the threshold to float16 against float16 scores; under numpy 2 it compares exactly, as here.) The
    benchmark takes the best-F1 threshold of the pixel metrics on the same frames.

    Per component two whole numbers are kept, so the result depends neither on the order of the frames nor on
    how they were spread over processes.

    Args:
        min_prediction_size: predicted components with fewer pixels are dropped.
        min_anomaly_size: anomalies with fewer pixels become void.
        threshold: on the score; may be infinite.
        inclusive: scores equal to the threshold are predicted too, as for the best F1 of the pixel metrics.
    """

    SETTINGS = ("min_prediction_size", "min_anomaly_size", "threshold", "inclusive")
    COUNTS = ("frames",)

    def __init__(
        self, min_prediction_size: int, min_anomaly_size: int, threshold: float, inclusive: bool = False
    ) -> None:
        if min_prediction_size < 0 or min_anomaly_size < 0:
            raise ValueError(
                "min_prediction_size and min_anomaly_size are numbers of pixels, found "
                f"{min_prediction_size} and {min_anomaly_size}"
            )
        if math.isnan(threshold):
            raise ValueError("threshold is NaN; take best_f1_threshold of pixel metrics that saw a pixel")
        self.min_prediction_size, self.min_anomaly_size = int(min_prediction_size), int(min_anomaly_size)
        self.threshold, self.inclusive = float(threshold), bool(inclusive)
        self.frames = 0
        self._anomalies: list[np.ndarray] = []
        self._predictions: list[np.ndarray] = []

    @classmethod
    def anomaly_track(cls, threshold: float, inclusive: bool = False) -> ComponentMetrics:
        """Sizes of RoadAnomaly21 and of Fishyscapes LostAndFound: 500 and 100 pixels."""
        return cls(500, 100, threshold, inclusive)

    @classmethod
    def obstacle_track(cls, threshold: float, inclusive: bool = False) -> ComponentMetrics:
        """Sizes of RoadObstacle21 and of LostAndFound: 50 and 10 pixels."""
        return cls(50, 10, threshold, inclusive)

    def update(self, score: Any, label: Any, name: str | None = None) -> FrameComponents:
        """Count one frame and return its components.

        Args:
            score: (H, W) floats or integers, higher = more anomalous.
            label: (H, W) integers or booleans: 0 known, 1 anomaly, 255 void.
            name: what to call the image in an error.

        Raises:
            ValueError: NaN among the scores, other labels, or shapes that differ or are not 2-D.
            TypeError: not numbers. Nothing is counted then.
        """
        image = self._image(name)
        scores, labels = as_scores(score, image), np.asarray(label)
        check_same_shape(scores, labels, "score and label", image)
        if scores.ndim != 2 or not scores.size:
            raise ValueError(f"{image}: score and label must be (H, W) and not empty, found {scores.shape}")
        anomaly_masks(labels, image)
        level = _round_down(self.threshold, scores.dtype)
        inclusive = self.inclusive and float(level) == self.threshold
        predicted = scores >= level if inclusive else scores > level
        sizes = self.min_prediction_size, self.min_anomaly_size
        anomalies, predictions = frame_components(predicted, labels, *sizes)
        self._anomalies.append(anomalies)
        self._predictions.append(predictions)
        self.frames += 1
        return FrameComponents(anomalies[:, :2], predictions)

    def _add(self, other: ComponentMetrics) -> None:
        super()._add(other)
        self._anomalies += other._anomalies
        self._predictions += other._predictions

    def compute(self) -> dict[str, Any]:
        """The numbers of everything counted so far.

        Returns:
            Fractions ``sIoU_gt`` (mean over all anomalies), ``PPV`` (mean over all predicted components) and
            ``F1`` (mean over the 11 thresholds). ``tp``, ``fn``, ``fp``, ``f1``: dicts keyed "0.25", "0.30" …
            "0.75" by the threshold t: anomalies with sIoU ≥ t and with sIoU < t, predicted components with
            PPV < t, and 2tp/(2tp+fn+fp). The settings. ``frames``, ``anomalies``, ``predictions`` (numbers of
            components). ``note``: why a number is undefined (NaN), or None.
        """
        siou, ppv, _, _ = self._shares()
        tp = (siou[:, None] >= THRESHOLDS).sum(axis=0)
        fp = (ppv[:, None] < THRESHOLDS).sum(axis=0)
        fn = len(siou) - tp
        counted = 2 * tp + fn + fp
        f1 = np.where(counted > 0, 2 * tp / np.maximum(counted, 1), math.nan)
        kinds = {"anomaly": siou, "predicted component": ppv}
        missing = [kind for kind, found in kinds.items() if not len(found)]
        keys = [f"{threshold:.2f}" for threshold in THRESHOLDS]
        table = {"tp": tp, "fn": fn, "fp": fp, "f1": f1}
        return {
            "sIoU_gt": _mean(siou),
            "PPV": _mean(ppv),
            "F1": _mean(f1),
            **{key: dict(zip(keys, values.tolist(), strict=True)) for key, values in table.items()},
            **self.settings(),
            "frames": self.frames,
            "anomalies": len(siou),
            "predictions": len(ppv),
            "note": f"no {' and no '.join(missing)} of at least the minimum size" if missing else None,
        }

    def by_size(self) -> list[dict[str, Any]]:
        """The size classes that hold a component, the smallest first.

        Returns:
            Each with ``from`` and ``to`` (pixels, from ≤ size < to; the last ``to`` is None), ``anomalies``,
            ``sIoU_gt`` (their mean), ``found`` (how many have sIoU ≥ 0.5), ``predictions`` and ``PPV`` (their
            mean). Means without a component are NaN.
        """
        siou, ppv, *sizes = self._shares()
        anomaly_class, prediction_class = (
            np.searchsorted(SIZE_LIMITS, size, side="right") - 1 for size in sizes
        )
        rows = []
        for index, (low, high) in enumerate(zip(SIZE_LIMITS, (*SIZE_LIMITS[1:], None), strict=True)):
            own_siou, own_ppv = siou[anomaly_class == index], ppv[prediction_class == index]
            if len(own_siou) or len(own_ppv):
                row = {"from": low, "to": high, "anomalies": len(own_siou), "sIoU_gt": _mean(own_siou)}
                row["found"] = int(np.count_nonzero(own_siou >= FOUND))
                rows.append(row | {"predictions": len(own_ppv), "PPV": _mean(own_ppv)})
        return rows

    def _shares(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """sIoU of the anomalies, PPV of the predicted components, and the sizes of both."""
        anomalies, predictions = _sorted_rows(self._anomalies, 3), _sorted_rows(self._predictions, 2)
        siou, ppv = anomalies[:, 0] / anomalies[:, 1], predictions[:, 0] / predictions[:, 1]
        return siou, ppv, anomalies[:, 2], predictions[:, 1]


def _round_down(threshold: float, dtype: np.dtype) -> np.floating:
    """Largest number of ``dtype`` not above ``threshold``; scores of that dtype exceed both or neither."""
    with np.errstate(over="ignore"):
        rounded = dtype.type(threshold)
    return np.nextafter(rounded, dtype.type(-np.inf)) if float(rounded) > threshold else rounded


def _sorted_rows(rows: list[np.ndarray], columns: int) -> np.ndarray:
    """(n, columns) int64, all rows in ascending order of the last column, then of the one before it, …"""
    joined = np.concatenate([np.empty((0, columns), np.int64), *rows])
    return joined[np.lexsort(joined.T)]


def _mean(values: np.ndarray) -> float:
    # fsum rounds once, whatever the order of the components.
    return math.fsum(values) / len(values) if len(values) else math.nan
