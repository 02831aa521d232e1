"""SegmentMeIfYouCan's pixel curves: each frame is binned by itself, the bins are pooled by threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmm_anomaly.metrics.base import State, array, plain
from gmm_anomaly.metrics.runs import Runs

QUANTILES_PER_LABEL = 384
UNIFORM_BINS = 4096
UNIFORM_RANGE = (-0.01, 1.01)
_LARGEST = float(np.finfo(np.float32).max)


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
        self._pooled = [Runs.empty(np.float64), Runs.empty(np.float64)]
        self._waiting: list[list[Runs]] = [[], []]
        self.dropped = 0

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        """Count one frame: (N,) and (P,) scores of its known and anomalous pixels, which may be reordered."""
        sides = [Runs.sorted(scores) for scores in (negative, positive)]
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
            self.totals()

    def merge(self, other: FrameBins) -> None:
        for waiting, runs in zip(self._waiting, other.totals(), strict=True):
            waiting.append(runs)
        self.dropped += other.dropped
        self.totals()

    def state(self) -> State:
        state: State = {"dropped": self.dropped}
        for side, runs in zip(("negative", "positive"), self.totals(), strict=True):
            state |= {f"{side}_thresholds": runs.values, f"{side}_counts": runs.counts}
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        self._pooled = [
            Runs(array(state, f"{side}_thresholds", np.float64), array(state, f"{side}_counts", np.int64))
            for side in ("negative", "positive")
        ]
        self.dropped = plain(state, "dropped")

    def totals(self) -> tuple[Runs, Runs]:
        """The pooled thresholds with the known and with the anomalous pixels of their bins."""
        for side, waiting in enumerate(self._waiting):
            merged = Runs.merge([self._pooled[side], *waiting])
            assert merged is not None
            self._pooled[side] = merged
            waiting.clear()
        return self._pooled[0], self._pooled[1]


def quantiles(scores: Runs) -> np.ndarray:
    """Evenly spaced quantiles with linear interpolation, as ``numpy.quantile`` has them.

    Args:
        scores: of one frame and label; infinities stand for the largest float32 numbers.

    Returns:
        (min(384, pixels),) float64, ascending, from the lowest to the highest score.
    """
    last = scores.total - 1
    rank = np.linspace(0.0, 1.0, min(QUANTILES_PER_LABEL, scores.total)) * last
    lower = np.floor(rank).astype(np.int64)
    low, high = (
        np.clip(scores.at_rank(at).astype(np.float64), -_LARGEST, _LARGEST)
        for at in (lower, np.minimum(lower + 1, last))
    )
    weight, step = rank - lower, high - low
    return np.where(weight < 0.5, low + step * weight, high - step * (1 - weight))


def quantile_edges(sides: Sequence[Runs]) -> np.ndarray:
    """Bin edges of one frame: the quantiles of each label that is there, and a margin; float64, ascending."""
    inner = np.concatenate([quantiles(scores) for scores in sides if scores.total])
    lowest, highest = float(inner.min()), float(inner.max())
    margin = max(0.01 * (highest - lowest), 0.01)
    # Beside very large scores the margin is lost in rounding: the next number then keeps the ends apart.
    low_end = min(lowest - margin, float(np.nextafter(lowest, -np.inf)))
    high_end = max(highest + margin, float(np.nextafter(highest, np.inf)))
    return np.unique(np.concatenate([[low_end, high_end], inner]))


def bin_counts(scores: Runs, edges: np.ndarray, closed: bool) -> Runs:
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
