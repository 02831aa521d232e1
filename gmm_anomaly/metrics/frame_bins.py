"""SegmentMeIfYouCan's pixel curves: each frame is binned by itself, the bins are pooled by threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmm_anomaly.metrics.protocols import FprRule
from gmm_anomaly.metrics.runs import Runs
from gmm_anomaly.metrics.sorted_scores import Ranked, ranked
from gmm_anomaly.metrics.state import State, array

QUANTILES_PER_LABEL = 384
UNIFORM_BINS = 4096
UNIFORM_RANGE = (-0.01, 1.01)
_LARGEST = float(np.finfo(np.float32).max)


def quantiles(scores: Ranked, largest: int = QUANTILES_PER_LABEL) -> np.ndarray:
    """Evenly spaced quantiles with linear interpolation, as ``numpy.quantile`` has them.

    Args:
        scores: of one frame and label; infinities stand for the largest float32 numbers.
        largest: how many quantiles, from the lowest to the highest score, but no more than there are pixels.

    Returns:
        (min(largest, pixels),) float64, ascending.
    """
    last = scores.total - 1
    rank = np.linspace(0.0, 1.0, min(largest, scores.total)) * last
    lower = np.floor(rank).astype(np.int64)
    low, high = (
        np.clip(scores.at_rank(at).astype(np.float64), -_LARGEST, _LARGEST)
        for at in (lower, np.minimum(lower + 1, last))
    )
    weight, step = rank - lower, high - low
    return np.where(weight < 0.5, low + step * weight, high - step * (1 - weight))


def quantile_edges(sides: Sequence[Ranked]) -> np.ndarray:
    """Bin edges of one frame: the quantiles of each label that is there, and a margin; float64, ascending."""
    inner = np.concatenate([quantiles(scores) for scores in sides if scores.total])
    lowest, highest = float(inner.min()), float(inner.max())
    margin = max(0.01 * (highest - lowest), 0.01)
    # Beside very large scores the margin is lost in rounding: the next number then keeps the ends apart.
    low_end = min(lowest - margin, float(np.nextafter(lowest, -np.inf)))
    high_end = max(highest + margin, float(np.nextafter(highest, np.inf)))
    return np.unique(np.concatenate([[low_end, high_end], inner]))


def bin_counts(scores: Ranked, edges: np.ndarray, closed: bool) -> Runs:
    """Pixels per bin [edge, next edge), as runs at the lower edges.

    Args:
        scores: of one label, float32.
        edges: (n,) float64, strictly ascending.
        closed: scores outside belong to the first or the last bin; otherwise they are left out.
    """
    # The smallest float32 not below an edge has as many float32 scores below it; searching it is far faster.
    with np.errstate(over="ignore"):
        rounded = edges.astype(np.float32)
        rounded = np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
    below = scores.ranks(rounded)[0]
    if closed:
        below[0], below[-1] = 0, scores.total
    counts = np.diff(below)
    seen = np.flatnonzero(counts)
    return Runs(edges[seen], counts[seen])


class FrameBins:
    """Pooled bins of frames: counts per threshold (a bin's lower edge, predicted from there up).

    Frames whose bins share a threshold have their counts added there. The reference code keeps two entries
    where several frames share the highest threshold of all, so that its AP depends on the order of the frames
    (by up to 2·10⁻⁴ on its own kind of data); here the order never matters.

    Memory: at most 768 thresholds a frame.

    Args:
        uniform: 4096 equal bins over [−0.01, 1.01] instead of the quantiles. Scores outside are dropped, as
            the reference drops them; :attr:`dropped` counts them.
    """

    def __init__(self, uniform: bool = False) -> None:
        self._uniform = uniform
        empty = Runs.empty(np.float64)
        self._pooled = (empty, empty)
        self._waiting: tuple[list[Runs], list[Runs]] = ([], [])
        self.dropped = 0

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        sides = [ranked(scores) for scores in (negative, positive)]
        if not any(side.total for side in sides):
            return
        if self._uniform:
            edges = np.linspace(*UNIFORM_RANGE, UNIFORM_BINS + 1, dtype=np.float32).astype(np.float64)
            edges[-1] = np.nextafter(edges[-1], np.inf)  # the last bin is closed
        else:
            edges = quantile_edges(sides)
        for side, waiting in zip(sides, self._waiting, strict=True):
            binned = bin_counts(side, edges, closed=not self._uniform)
            self.dropped += side.total - binned.total
            waiting.append(binned)
        if sum(map(len, self._waiting[0])) > max(len(self._pooled[0]), 2**16):
            self._collect()

    def merge(self, other: FrameBins) -> None:
        for waiting, runs in zip(self._waiting, other.totals(), strict=True):
            waiting.append(runs)
        self.dropped += other.dropped
        self._collect()

    def state(self) -> State:
        negative, positive = self.totals()
        return {
            "negative_thresholds": negative.values,
            "negative_counts": negative.counts,
            "positive_thresholds": positive.values,
            "positive_counts": positive.counts,
            "dropped": self.dropped,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._pooled = (
            Runs.from_state(state, "negative_thresholds", "negative_counts", np.float64),
            Runs.from_state(state, "positive_thresholds", "positive_counts", np.float64),
        )
        self.dropped = int(array(state, "dropped"))

    def totals(self) -> tuple[Runs, Runs]:
        self._collect()
        return self._pooled

    def intervals(self, rule: FprRule) -> None:
        return None

    def _collect(self) -> None:
        (negative, new_negative), (positive, new_positive) = zip(self._pooled, self._waiting, strict=True)
        self._pooled = (Runs.merge([negative, *new_negative]), Runs.merge([positive, *new_positive]))
        for waiting in self._waiting:
            waiting.clear()
