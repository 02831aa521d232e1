"""SegmentMeIfYouCan's component metrics: sIoU of anomalies, PPV of predictions, mean F1 over thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from gmm_anomaly.metrics.frames import anomaly_masks, as_scores, check_same_shape
from gmm_anomaly.metrics.state import State, array, check_alike, check_header, header, scalar

THRESHOLDS = np.linspace(0.25, 0.75, 11)  # as the reference has them: the eighth is 0.6000000000000001
THRESHOLD_KEYS = tuple(f"{threshold:.2f}" for threshold in THRESHOLDS)


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
) -> FrameComponents:
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
    return FrameComponents(
        np.stack([hit[kept], union[kept]], axis=1),
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


class ComponentMetrics:
    """Component metrics over a data set, at one threshold on the score.

    A pixel is predicted anomalous where score > threshold, compared exactly whatever the score's dtype.
    (Under numpy 1 the reference code rounded the threshold to float16 against float16 scores; under numpy 2
    it compares exactly, as here.) The benchmark takes the best-F1 threshold of the pixel metrics on the same
    frames.

    Per component two whole numbers are kept, so the result depends neither on the order of the frames nor on
    how they were spread over processes.

    Args:
        min_prediction_size: predicted components with fewer pixels are dropped.
        min_anomaly_size: anomalies with fewer pixels become void.
        threshold: on the score; may be infinite.
    """

    def __init__(self, min_prediction_size: int, min_anomaly_size: int, threshold: float) -> None:
        if min_prediction_size < 0 or min_anomaly_size < 0:
            raise ValueError(
                "min_prediction_size and min_anomaly_size are numbers of pixels, found "
                f"{min_prediction_size} and {min_anomaly_size}"
            )
        if math.isnan(threshold):
            raise ValueError("threshold is NaN; take best_f1_threshold of pixel metrics that saw a pixel")
        self.min_prediction_size, self.min_anomaly_size = int(min_prediction_size), int(min_anomaly_size)
        self.threshold = float(threshold)
        self.frames = 0
        self._anomalies: list[np.ndarray] = []
        self._predictions: list[np.ndarray] = []

    @classmethod
    def anomaly_track(cls, threshold: float) -> ComponentMetrics:
        """Sizes of RoadAnomaly21 and of Fishyscapes LostAndFound: 500 and 100 pixels."""
        return cls(500, 100, threshold)

    @classmethod
    def obstacle_track(cls, threshold: float) -> ComponentMetrics:
        """Sizes of RoadObstacle21 and of LostAndFound: 50 and 10 pixels."""
        return cls(50, 10, threshold)

    def update(self, score: Any, label: Any, name: str | None = None) -> FrameComponents:
        """Count one frame and return its components.

        Args:
            score: (H, W) float, higher = more anomalous.
            label: (H, W) integers or booleans: 0 known, 1 anomaly, 255 void.
            name: what to call the image in an error.

        Raises:
            ValueError: NaN among the scores, other labels, or shapes that differ or are not 2-D.
            TypeError: not numbers. Nothing is counted then.
        """
        image = f"image {name!r}" if name is not None else f"image number {self.frames + 1}"
        scores, labels = as_scores(score, image), np.asarray(label)
        check_same_shape(scores, labels, "score and label", image)
        if scores.ndim != 2 or not scores.size:
            raise ValueError(f"{image}: score and label must be (H, W) and not empty, found {scores.shape}")
        anomaly_masks(labels, image)
        predicted = scores > _round_down(self.threshold, scores.dtype)
        found = frame_components(predicted, labels, self.min_prediction_size, self.min_anomaly_size)
        self._anomalies.append(found.anomalies)
        self._predictions.append(found.predictions)
        self.frames += 1
        return found

    def merge(self, other: ComponentMetrics) -> None:
        """Add what ``other`` has counted; ``other`` keeps it. Both must have been made alike."""
        check_alike(self, other)
        self._anomalies += other._anomalies
        self._predictions += other._predictions
        self.frames += other.frames

    def settings(self) -> dict[str, Any]:
        """What the metrics were made with."""
        names = ("min_prediction_size", "min_anomaly_size", "threshold")
        return {name: getattr(self, name) for name in names}

    def state(self) -> State:
        """Everything counted so far, as numbers, strings and arrays; the components in sorted order."""
        return {
            **header("ComponentMetrics"),
            **self.settings(),
            "frames": self.frames,
            "anomalies": _sorted_rows(self._anomalies),
            "predictions": _sorted_rows(self._predictions),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ComponentMetrics:
        """The metrics whose :meth:`state` this is, also read back from ``.npz``, JSON or torch."""
        check_header(state, "ComponentMetrics")
        names = ("min_prediction_size", "min_anomaly_size", "threshold")
        metrics = cls(*(scalar(state, name) for name in names))
        metrics.frames = scalar(state, "frames")
        metrics._anomalies, metrics._predictions = (
            [array(state, name, np.int64).reshape(-1, 2)] for name in ("anomalies", "predictions")
        )
        return metrics

    def compute(self) -> dict[str, Any]:
        """The numbers of everything counted so far.

        Returns:
            Fractions ``sIoU_gt`` (mean over all anomalies), ``PPV`` (mean over all predicted components) and
            ``F1`` (mean over the 11 thresholds). ``tp``, ``fn``, ``fp``, ``f1``: dicts keyed "0.25", "0.30" …
            "0.75" by the threshold t: anomalies with sIoU ≥ t and with sIoU < t, predicted components with
            PPV < t, and 2tp/(2tp+fn+fp). ``threshold``, ``min_prediction_size``, ``min_anomaly_size``,
            ``frames``, ``anomalies``, ``predictions`` (numbers of components). ``note``: why a number is
            undefined (NaN), or None.
        """
        siou, ppv = (_ratios(rows) for rows in (self._anomalies, self._predictions))
        tp = (siou[:, None] >= THRESHOLDS).sum(axis=0)
        fp = (ppv[:, None] < THRESHOLDS).sum(axis=0)
        fn = len(siou) - tp
        counted = 2 * tp + fn + fp
        f1 = np.where(counted > 0, 2 * tp / np.maximum(counted, 1), math.nan)
        kinds = {"anomaly": siou, "predicted component": ppv}
        missing = [kind for kind, found in kinds.items() if not len(found)]
        table = {"tp": tp, "fn": fn, "fp": fp, "f1": f1}
        return {
            "sIoU_gt": _mean(siou),
            "PPV": _mean(ppv),
            "F1": _mean(f1),
            **{key: dict(zip(THRESHOLD_KEYS, values.tolist(), strict=True)) for key, values in table.items()},
            **self.settings(),
            "frames": self.frames,
            "anomalies": len(siou),
            "predictions": len(ppv),
            "note": f"no {' and no '.join(missing)} of at least the minimum size" if missing else None,
        }


def _round_down(threshold: float, dtype: np.dtype) -> np.floating:
    """Largest number of ``dtype`` not above ``threshold``; scores of that dtype exceed both or neither."""
    with np.errstate(over="ignore"):
        rounded = dtype.type(threshold)
    return np.nextafter(rounded, dtype.type(-np.inf)) if float(rounded) > threshold else rounded


def _sorted_rows(rows: list[np.ndarray]) -> np.ndarray:
    """(n, 2) int64, all rows in ascending order of the second column, then of the first."""
    joined = np.concatenate([np.empty((0, 2), np.int64), *rows])
    return joined[np.lexsort(joined.T)]


def _ratios(rows: list[np.ndarray]) -> np.ndarray:
    joined = _sorted_rows(rows)
    return joined[:, 0] / joined[:, 1]


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan
