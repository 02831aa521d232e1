"""Component results by size: which anomalies are found, and which predictions are right, small and large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from gmm_anomaly.metrics.component import FrameComponents
from gmm_anomaly.metrics.state import State, array, check_header, header

# Lower limits of the size classes in pixels: squares of 10, 20, 40 … pixels a side.
SIZE_LIMITS = (0, 100, 400, 1600, 6400, 25600, 102400)
FOUND = 0.5  # sIoU from which an anomaly counts as found


def anomaly_sizes(label: np.ndarray, min_anomaly_size: int) -> np.ndarray:
    """Pixels of each anomaly of a frame that is not too small, in the order of :class:`FrameComponents`.

    Args:
        label: (H, W), 0 known, 1 anomaly, 255 void.
        min_anomaly_size: as :func:`frame_components` takes it.

    Returns:
        (G,) int64.
    """
    anomalous = (label == 1).view(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(anomalous, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)
    return sizes[sizes >= min_anomaly_size]


class ComponentSizes:
    """The components of :class:`ComponentMetrics`, by size.

    Whole numbers are kept per component, so neither the order of the frames nor how they were spread over
    processes shows.
    """

    def __init__(self) -> None:
        self._anomalies = [np.empty((0, 3), np.int64)]
        self._predictions = [np.empty((0, 2), np.int64)]

    def update(self, found: FrameComponents, sizes: np.ndarray) -> None:
        """Count one frame.

        Args:
            found: what ``ComponentMetrics.update`` returned for it.
            sizes: its :func:`anomaly_sizes` at the same size limit.

        Raises:
            ValueError: another number of anomalies.
        """
        if len(sizes) != len(found.anomalies):
            raise ValueError(
                f"expected the sizes of {len(found.anomalies)} anomalies, found {len(sizes)}; both must be "
                "of one frame and one min_anomaly_size"
            )
        self._anomalies.append(np.column_stack([sizes, found.anomalies]))
        self._predictions.append(found.predictions)

    def merge(self, other: ComponentSizes) -> None:
        """Add what ``other`` has counted; ``other`` keeps it."""
        self._anomalies += other._anomalies
        self._predictions += other._predictions

    def state(self) -> State:
        """Everything counted so far, as numbers, strings and arrays."""
        return header("ComponentSizes") | {
            "anomalies": np.concatenate(self._anomalies),
            "predictions": np.concatenate(self._predictions),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ComponentSizes:
        """The counts whose :meth:`state` this is."""
        check_header(state, "ComponentSizes")
        sizes = cls()
        sizes._anomalies = [array(state, "anomalies", np.int64).reshape(-1, 3)]
        sizes._predictions = [array(state, "predictions", np.int64).reshape(-1, 2)]
        return sizes

    def compute(self) -> list[dict[str, Any]]:
        """The size classes that hold a component, the smallest first.

        Returns:
            Each with ``from`` and ``to`` (pixels, from ≤ size < to; the last ``to`` is None), ``anomalies``,
            ``sIoU_gt`` (their mean), ``found`` (how many have sIoU ≥ 0.5), ``predictions`` and ``PPV`` (their
            mean). Means without a component are NaN.
        """
        anomalies, predictions = np.concatenate(self._anomalies), np.concatenate(self._predictions)
        siou, ppv = anomalies[:, 1] / anomalies[:, 2], predictions[:, 0] / predictions[:, 1]
        anomaly_class, prediction_class = (
            np.searchsorted(SIZE_LIMITS, sizes, side="right") - 1
            for sizes in (anomalies[:, 0], predictions[:, 1])
        )
        rows = []
        for index, (low, high) in enumerate(zip(SIZE_LIMITS, (*SIZE_LIMITS[1:], None), strict=True)):
            own_siou, own_ppv = siou[anomaly_class == index], ppv[prediction_class == index]
            if len(own_siou) or len(own_ppv):
                rows.append(
                    {
                        "from": low,
                        "to": high,
                        "anomalies": len(own_siou),
                        "sIoU_gt": _mean(own_siou),
                        "found": int(np.count_nonzero(own_siou >= FOUND)),
                        "predictions": len(own_ppv),
                        "PPV": _mean(own_ppv),
                    }
                )
        return rows


def _mean(values: np.ndarray) -> float:
    # fsum rounds once, whatever the order of the components.
    return math.fsum(values) / len(values) if len(values) else math.nan
