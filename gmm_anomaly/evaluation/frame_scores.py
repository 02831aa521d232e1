"""Average precision of single frames, and which of them are the best and the worst so far."""

from __future__ import annotations

import math
from bisect import insort

import numpy as np

from gmm_anomaly.metrics.curves import OperatingPoints
from gmm_anomaly.metrics.runs import Runs


def frame_average_precision(score: np.ndarray, label: np.ndarray) -> float:
    """AP over the valid pixels of one frame; NaN where it has no anomalous or no known pixel.

    Args:
        score: (H, W) float16, float32 or float64 without NaN, higher = more anomalous.
        label: (H, W), 0 known, 1 anomaly, 255 void.
    """
    positive = score[label == 1]
    if not positive.size:
        return math.nan
    negative = score[label == 0]
    if not negative.size:
        return math.nan
    return OperatingPoints(Runs.sorted(negative), Runs.from_scores(positive)).average_precision


class FrameScores:
    """The AP of every frame of a shard; frames are known by their index in the data set.

    Args:
        extremes: how many of the best and of the worst frames are followed.

    Attributes:
        found: {index: AP}, NaN where it is undefined.
    """

    def __init__(self, extremes: int) -> None:
        self.extremes = extremes
        self.found: dict[int, float] = {}
        # Ascending by rank: the last one goes first when there are too many.
        self._best: list[tuple[float, int]] = []
        self._worst: list[tuple[float, int]] = []

    @property
    def extreme(self) -> set[int]:
        """Indices of the best and of the worst frames so far."""
        return {index for _, index in (*self._best, *self._worst)}

    def add(self, index: int, average_precision: float) -> set[int]:
        """Note a frame's AP; returns the frames that belong to the extreme ones no more."""
        self.found[index] = average_precision
        if not self.extremes or math.isnan(average_precision):
            return set()
        before = self.extreme
        for ranking, sign in ((self._best, -1), (self._worst, 1)):
            insort(ranking, (sign * average_precision, index))
            del ranking[self.extremes :]
        return before - self.extreme

    @classmethod
    def joined(cls, shards: list[dict[int, float]], extremes: int) -> FrameScores:
        """The frames of all shards, in the order of the data set."""
        joined = cls(extremes)
        for index, average_precision in sorted(item for shard in shards for item in shard.items()):
            joined.add(index, average_precision)
        return joined
