"""Sorted scores and how many pixels have each: the one form from which every pixel metric is computed; and
SegmentMeIfYouCan's bins, in which each frame is binned by itself and the bins are pooled by threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmm_anomaly.metrics.base import State, array, plain

# Merging walks through blocks of this many entries, which stay in the cache and bound the working memory.
_BLOCK = 2**16

# The float16 numbers in ascending order, without NaN and −0: as bit patterns and as float32.
_HALF_PATTERNS = np.concatenate([np.arange(0xFC00, 0x8000, -1), np.arange(0x0000, 0x7C01)])
_HALF_VALUES = _HALF_PATTERNS.astype(np.uint16).view(np.float16).astype(np.float32)

QUANTILES_PER_LABEL = 384
UNIFORM_BINS = 4096
UNIFORM_RANGE = (-0.01, 1.01)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Runs:
    """Scores of pixels in ascending order.

    Attributes:
        values: (n,) float32 or float64 without NaN; strictly ascending and without −0 where there are counts.
        counts: (n,) int64, the pixels of each score, all positive. None: each score is one pixel, equal ones
            stand side by side; for ranks that is enough, and counting would cost as much again as sorting.
    """

    values: np.ndarray
    counts: np.ndarray | None

    @classmethod
    def empty(cls, dtype: type = np.float32) -> Runs:
        return cls(np.empty(0, dtype), np.empty(0, np.int64))

    @classmethod
    def sorted(cls, scores: np.ndarray) -> Runs:
        """Put (N,) scores without NaN in order: float32 and float64 in place; float16 are counted."""
        if scores.dtype == np.float16:
            return cls.from_half_counts(count_half(scores))
        scores.sort()
        return cls(scores, None)

    @classmethod
    def from_scores(cls, scores: np.ndarray) -> Runs:
        """Count equal scores among (N,) without NaN. Float32 and float64 are sorted in place; float16 scores
        come back as float32.
        """
        runs = cls.sorted(scores)
        if runs.counts is not None or not scores.size:
            return cls(runs.values, np.empty(0, np.int64) if runs.counts is None else runs.counts)
        ends = np.ones(scores.size, np.bool_)
        np.not_equal(scores[1:], scores[:-1], out=ends[:-1])
        last = np.flatnonzero(ends)
        # −0 and 0 are one score; which of them came last must not show.
        return cls(scores[last] + scores.dtype.type(0), np.diff(last, prepend=-1))

    @classmethod
    def from_half_counts(cls, counts: np.ndarray) -> Runs:
        """Runs of a (65536,) table of counts per float16 bit pattern, as :func:`count_half` makes it."""
        ordered = counts[_HALF_PATTERNS]
        seen = np.flatnonzero(ordered)
        return cls(_HALF_VALUES[seen], ordered[seen])

    @classmethod
    def merge(cls, parts: Sequence[Runs], at_most: int | None = None) -> Runs | None:
        """Add the counts of equal scores; the result does not depend on the order of ``parts``.

        Args:
            parts: runs with counts, of one dtype, at least one.
            at_most: largest number of different scores wanted; None is returned where there are more.
        """
        longest = max(parts, key=len)
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return longest if at_most is None or len(longest) <= at_most else None
        cuts = longest.values[_BLOCK::_BLOCK]
        bounds = [np.concatenate([[0], np.searchsorted(part.values, cuts), [len(part)]]) for part in parts]
        blocks: list[tuple[np.ndarray, np.ndarray]] = []
        size = 0
        for start, stop in zip(np.transpose(bounds), np.transpose(bounds)[1:], strict=False):
            pieces = [(part, slice(*at)) for part, *at in zip(parts, start, stop, strict=True)]
            values = np.concatenate([part.values[piece] for part, piece in pieces])
            counts = np.concatenate([part.counts[piece] for part, piece in pieces if part.counts is not None])
            order = np.argsort(values, kind="stable")  # timsort: the pieces are sorted already
            values = values[order]
            first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
            blocks.append((values[first], np.add.reduceat(counts[order], first)))
            size += len(first)
            if at_most is not None and size > at_most:
                return None
        values, counts = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
        return cls(values, counts)

    def astype(self, dtype: np.dtype) -> Runs:
        """The same with wider values."""
        return Runs(self.values.astype(dtype, copy=False), self.counts)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def total(self) -> int:
        """Number of pixels."""
        return len(self) if self.counts is None else int(self.counts.sum())

    def ranks(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many pixels score below, and how many at or below each of ``at`` (ascending); int64."""
        below, up_to = (np.searchsorted(self.values, at, side=side) for side in ("left", "right"))
        if self.counts is None:
            return below, up_to
        sums = np.concatenate([[0], np.cumsum(self.counts)])
        return sums[below], sums[up_to]

    def at_rank(self, rank: np.ndarray) -> np.ndarray:
        """The score of the pixel with ``rank`` lower or equal ones before it, 0 being the lowest."""
        if self.counts is None:
            return self.values[rank] + self.values.dtype.type(0)  # −0 becomes 0
        return self.values[np.searchsorted(np.cumsum(self.counts), rank, side="right")]


def count_half(scores: np.ndarray) -> np.ndarray:
    """Count (N,) float16 scores per bit pattern: (65536,) int64, with −0 counted as 0."""
    counts = np.bincount(scores.view(np.uint16), minlength=65536)
    counts[0x0000] += counts[0x8000]
    counts[0x8000] = 0
    return counts


class FrameBins:
    """Pooled bins of frames: counts per threshold (a bin's lower edge, predicted from there up).

    Frames whose bins share a threshold have their counts added there. The reference code keeps two entries
    where several frames share the highest threshold of all, so that its AP depends on the order of the frames
    (by up to 2·10⁻⁴ on its own kind of data); here the order never matters.

    Memory: at most 768 thresholds a frame.

    Args:
        uniform: 4096 equal bins over [−0.01, 1.01] instead of the quantiles. Scores outside, too high ones
            as well, are in no bin but in the totals, as in the reference: below all bins. :attr:`dropped`
            counts them.
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
            waiting.append(binned)
            if outside := side.total - binned.total:
                self.dropped += outside
                waiting.append(Runs(2 * edges[:1] - edges[1], np.array([outside])))
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
    """At most 384 evenly spaced quantiles of one frame and label, float64, with linear interpolation as
    ``numpy.quantile`` has them; infinities stand for the largest float32 numbers.
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
    """Pixels per bin [edge, next edge), as runs at the lower edges; ``closed``: scores outside belong to the
    first or the last bin, otherwise they are left out.
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
