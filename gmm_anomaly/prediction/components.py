"""Connected regions of high score, as objects and in COCO's terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

# The smallest predicted components that SegmentMeIfYouCan keeps on its obstacle track.
MIN_AREA = 50


@dataclass(frozen=True, eq=False)
class AnomalyComponent:
    """One region that is connected (8 neighbours) and whose scores all lie above the threshold.

    Attributes:
        box: (x, y, width, height) in pixels, as COCO has it: x and y of the top left pixel.
        area: pixels.
        mean_score, max_score: over its pixels.
        contour: (P, 2) int32, (x, y) of its outer border's corners, in order.
        rle: COCO's compressed run-length code of its mask, {"size": [H, W], "counts": str}.
    """

    box: tuple[int, int, int, int]
    area: int
    mean_score: float
    max_score: float
    contour: np.ndarray = field(repr=False)
    rle: dict[str, Any] = field(repr=False)

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, of the image's size."""
        return coco.decode(self.rle).astype(bool)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, with the names of the attributes."""
        return {
            "box": list(self.box),
            "area": self.area,
            "mean_score": self.mean_score,
            "max_score": self.max_score,
            "contour": self.contour.tolist(),
            "rle": self.rle,
        }


def find_components(score: np.ndarray, threshold: float, min_area: int = MIN_AREA) -> list[AnomalyComponent]:
    """Components of the pixels whose score is above a threshold, largest first.

    The rule is SegmentMeIfYouCan's: score > threshold, 8-connectivity, components with fewer than
    ``min_area`` pixels dropped.

    Args:
        score: (H, W) float, higher = more anomalous.
        threshold: on the score; compared exactly.
        min_area: in pixels.

    Raises:
        ValueError: ``score`` is not (H, W), the threshold is NaN, or ``min_area`` is negative.
    """
    if score.ndim != 2:
        raise ValueError(f"score must be (H, W), found shape {score.shape}")
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, found NaN")
    if min_area < 0:
        raise ValueError(f"min_area must be 0 or more pixels, found {min_area}")
    # In float64 a float32 score and the threshold are compared as they are, whatever NumPy's promotion.
    above = (score.astype(np.float64) > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    kept = [number for number in range(1, count) if stats[number, cv2.CC_STAT_AREA] >= min_area]
    kept.sort(key=lambda number: (-stats[number, cv2.CC_STAT_AREA], number))
    return [_component(score, labels, number, stats[number]) for number in kept]


def _component(score: np.ndarray, labels: np.ndarray, number: int, stats: np.ndarray) -> AnomalyComponent:
    x, y, width, height, area = (int(value) for value in stats)
    inside = np.s_[y : y + height, x : x + width]
    part = labels[inside] == number
    values = score[inside][part].astype(np.float64)
    contours, _ = cv2.findContours(
        part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
    )
    mask = np.zeros(score.shape, np.uint8, order="F")
    mask[inside] = part
    rle = coco.encode(mask)
    return AnomalyComponent(
        box=(x, y, width, height),
        area=area,
        mean_score=float(values.mean()),
        max_score=float(values.max()),
        # 8-connected, so there is one outer border.
        contour=contours[0].reshape(-1, 2).astype(np.int32),
        rle={"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
    )
