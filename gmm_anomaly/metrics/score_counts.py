"""Streaming counts of scores per label: float16 in a table, wider ones exactly and then in bins."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gmm_anomaly.metrics.base import State, array, plain
from gmm_anomaly.metrics.runs import Runs, count_half

_LARGEST_BUFFER = 2**25  # scores
_BIN_SHIFT = 39  # of the 64 bits of a float64: sign, exponent and 13 bits behind it are left
_CHUNK = 2**22  # runs binned at once, which bounds the working memory
_SLACK = 1e-12  # wider than the rounding of the sums of an interval


def own_pages(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros in pages of its own; those that nothing was written to are not resident, and all go
    with the array.

    On the heap, between a network's temporaries that come and go, anything that stays leaves holes too small
    for the next frame's: as plain arrays, the maps of 500 frames of 64 x 128 pixels, 33 MB, cost 0.5 to 2 GB.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Private mappings that lie side by side count as one against the system's limit; none can be empty.
    pages = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.ndarray(shape, dtype, pages)


class HalfCounts:
    """Counts of float16 scores: one per bit pattern, so exact, in 1 MB whatever the number of pixels."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, 65536), np.int64)  # known, anomalous

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        """Count one image: (N,) and (P,) scores of its known and anomalous pixels."""
        self._counts[0] += count_half(negative)
        self._counts[1] += count_half(positive)

    def merge(self, other: HalfCounts) -> None:
        self._counts += other._counts

    def state(self) -> State:
        return {"negative_counts": self._counts[0].copy(), "positive_counts": self._counts[1].copy()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._counts = np.stack(
            [array(state, f"{side}_counts", np.int64) for side in ("negative", "positive")]
        )

    def totals(self) -> tuple[Runs, Runs]:
        """The scores of the known and of the anomalous pixels."""
        return Runs.from_half_counts(self._counts[0]), Runs.from_half_counts(self._counts[1])


class FloatCounts:
    """Counts of float32 scores, exact while there are few enough different ones, then in some 2²² bins.

    Pixels wait unsorted until there are ``max_distinct`` of them (4 bytes each), are then sorted and merged
    into runs (12 bytes for each different score of a label). Should the runs outgrow ``max_distinct``, they
    are counted into bins (at most 120 MB), as is all that follows. With the first image of float64 scores all
    are kept as float64 (8 and 16 bytes). Which form a state has depends only on the images in it, not on
    their order, so shards merge to the same state however they were cut.

    Args:
        max_distinct: how many different (score, label) pairs are kept exactly.
    """

    def __init__(self, max_distinct: int) -> None:
        self._max_distinct = max_distinct
        self.dtype = np.dtype(np.float32)
        self._runs = (Runs.empty(), Runs.empty())
        self._bins: BinnedCounts | None = None
        self._clear()

    def _clear(self) -> None:
        size = (min(self._max_distinct, _LARGEST_BUFFER),)
        self._waiting = [own_pages(size, self.dtype) for _ in range(2)]
        self._used = [0, 0]
        self._sorted = False

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        """Count one image: (N,) and (P,) scores of known and anomalous pixels, which are copied."""
        self._widen(negative.dtype)
        for side, scores in enumerate((negative, positive)):
            start = 0
            while start < scores.size:
                at = self._used[side]
                taken = min(scores.size - start, len(self._waiting[side]) - at)
                self._waiting[side][at : at + taken] = scores[start : start + taken]
                self._used[side], start, self._sorted = at + taken, start + taken, False
                if sum(self._used) >= len(self._waiting[side]):
                    self._collect()

    def merge(self, other: FloatCounts) -> None:
        self._widen(other.dtype)
        self._collect()
        other._collect()
        if other._bins is not None:
            self._add_bins(other._bins)
        else:
            self._add_runs(*other._runs)

    def _widen(self, dtype: np.dtype) -> None:
        if dtype.itemsize > self.dtype.itemsize:
            self._collect()
            self.dtype = dtype
            self._clear()
            self._runs = (self._runs[0].astype(dtype), self._runs[1].astype(dtype))
            if self._bins is not None:
                low, high = self._bins.low.astype(dtype), self._bins.high.astype(dtype)
                self._bins = replace(self._bins, low=low, high=high)

    def state(self) -> State:
        self._collect()
        state: State = {"binned": self._bins is not None, "dtype": self.dtype.name}
        if self._bins is not None:
            return state | {field.name: getattr(self._bins, field.name) for field in fields(self._bins)}
        for side, runs in zip(("negative", "positive"), self._runs, strict=True):
            state |= {f"{side}_scores": runs.values, f"{side}_counts": runs.counts}
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        self.dtype = np.dtype(plain(state, "dtype"))
        self._clear()
        if array(state, "binned"):
            counts = [array(state, name, np.int64) for name in ("bins", "negative", "positive")]
            self._bins = BinnedCounts(*counts, *(array(state, name, self.dtype) for name in ("low", "high")))
            return
        negative, positive = (
            Runs(array(state, f"{side}_scores", self.dtype), array(state, f"{side}_counts", np.int64))
            for side in ("negative", "positive")
        )
        self._runs = (negative, positive)

    def totals(self) -> tuple[Runs, Runs]:
        """The scores of the known pixels, until the next image is added, and those of the anomalous pixels
        with their counts."""
        if self._bins is None and not any(map(len, self._runs)):
            # Nothing outgrew memory yet: sorting is enough for the known pixels.
            negative, positive = self._filled()
            if not self._sorted:
                negative.sort()
                positive.sort()
            self._sorted = True
            return Runs(negative, None), Runs.from_scores(positive)
        self._collect()
        return self._runs if self._bins is None else self._bins.totals()

    @property
    def bins(self) -> BinnedCounts | None:
        """The bins behind the last :meth:`totals`, where they do not hold every score exactly."""
        return None if self._bins is None or np.all(self._bins.low == self._bins.high) else self._bins

    def _collect(self) -> None:
        """Sort the waiting pixels into the runs or bins."""
        if any(self._used):
            negative, positive = map(Runs.from_scores, self._filled())
            self._clear()
            self._add_runs(negative, positive)

    def _filled(self) -> list[np.ndarray]:
        return [scores[:used] for scores, used in zip(self._waiting, self._used, strict=True)]

    def _add_runs(self, negative: Runs, positive: Runs) -> None:
        negative, positive = negative.astype(self.dtype), positive.astype(self.dtype)
        if self._bins is None:
            positives = Runs.merge([self._runs[1], positive], self._max_distinct)
            if positives is not None:
                negatives = Runs.merge([self._runs[0], negative], self._max_distinct - len(positives))
                if negatives is not None:
                    self._runs = (negatives, positives)
                    return
        self._add_bins(BinnedCounts.from_runs(negative, positive))

    def _add_bins(self, bins: BinnedCounts) -> None:
        if self._bins is None:
            self._bins = BinnedCounts.from_runs(*self._runs)
            self._runs = (Runs.empty(), Runs.empty())
        self._bins = self._bins.merged(bins)


@dataclass(frozen=True)
class BinnedCounts:
    """Known and anomalous pixels per bin, with the lowest and the highest score seen in it.

    Each bin spans 1024 neighbouring float32 numbers, or the float64 ones between them (a relative width of
    2⁻¹³). A bin in which only one score was ever seen (lowest = highest) is a tie and costs no accuracy,
    so scores that pile up at one number, as saturated ones do, stay exact.

    Attributes:
        bins: (n,) int64, the numbers of the bins that hold pixels, ascending; for float32 scores about 2²² at
            most, usually far fewer.
        negative, positive: (n,) int64, their known and anomalous pixels.
        low, high: (n,) float32 or float64, the lowest and the highest score in them.
    """

    bins: np.ndarray
    negative: np.ndarray
    positive: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def from_runs(cls, *sides: Runs) -> BinnedCounts:
        """Count the runs of the known and of the anomalous pixels."""
        no_count, no_score = np.empty(0, np.int64), np.empty(0, sides[0].values.dtype)
        total = cls(no_count, no_count, no_count, no_score, no_score)
        for side, runs in enumerate(sides):
            assert runs.counts is not None
            for start in range(0, len(runs), _CHUNK):
                values, counts = runs.values[start : start + _CHUNK], runs.counts[start : start + _CHUNK]
                # The top bits of the bit pattern, mapped so that order is kept.
                bits = values.astype(np.float64).view(np.int64)
                bins = (bits ^ ((bits >> 63) & np.int64(2**63 - 1))) >> _BIN_SHIFT
                first = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
                pixels = np.zeros((2, len(first)), np.int64)
                pixels[side] = np.add.reduceat(counts, first)
                last = np.append(first[1:], len(bins)) - 1
                found = cls(bins[first], pixels[0], pixels[1], values[first], values[last])
                total = total.merged(found)
        return total

    def merged(self, other: BinnedCounts) -> BinnedCounts:
        """The counts of both, the same whichever comes first."""
        bins = np.concatenate([self.bins, other.bins])
        order = np.argsort(bins, kind="stable")
        if not len(bins):
            return self
        first = np.flatnonzero(np.diff(bins[order], prepend=bins[order[0]] - 1))
        ways = {"negative": np.add, "positive": np.add, "low": np.minimum, "high": np.maximum}
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)])[order] for name in ways}
        return BinnedCounts(
            bins[order][first], *(way.reduceat(joined[name], first) for name, way in ways.items())
        )

    def totals(self) -> tuple[Runs, Runs]:
        """Runs of the known and the anomalous pixels, each bin taken for a tie at its lowest score.

        That score is a true threshold: at or above it are the pixels of this bin and of all higher ones.
        """
        negative, positive = self.negative > 0, self.positive > 0
        return (
            Runs(self.low[negative], self.negative[negative]),
            Runs(self.low[positive], self.positive[positive]),
        )

    def intervals(self, rate: float) -> dict[str, tuple[float, float]]:
        """Intervals that hold AP, AUROC and FPR95 of the scores before binning.

        For a bin with p anomalous and n known pixels, T and F of them in higher bins and m = F + n:

        - an anomalous pixel of the bin has precision at most (T+p)/(T+p+F); the j-th of them from the top has
          at least (T+j)/(T+j+m), and Σⱼ 1/(T+m+j) ≤ log1p(p/(T+m+½)) because 1/x is convex;
        - it outranks the N−m known pixels below the bin and at most all n inside it;
        - where the TPR is reached in the bin, between F and m known pixels are above the threshold.

        Bins with a single score contribute their exact value.

        Args:
            rate: the TPR that is to be reached.

        Returns:
            ``AP``, ``AUROC``, ``FPR95``: (low, high), NaN where the number is undefined.
        """
        n, p = self.negative[::-1].astype(np.float64), self.positive[::-1].astype(np.float64)
        tied = (self.low == self.high)[::-1]
        above_n, above_p = np.cumsum(n) - n, np.cumsum(p) - p
        negatives, positives = float(n.sum()), float(p.sum())
        undefined = (math.nan, math.nan)
        if not positives:
            return {"AP": undefined, "AUROC": undefined, "FPR95": (0.0, 0.0) if negatives else undefined}

        m = above_n + n
        at_tie = p * (above_p + p) / (above_p + p + m)
        least = p - m * np.log1p(p / (above_p + m + 0.5))
        most = p * (above_p + p) / np.maximum(above_p + p + above_n, 1.0)
        ap = _interval(np.where(tied, at_tie, least), np.where(tied, at_tie, most), positives)
        if not negatives:
            return {"AP": ap, "AUROC": undefined, "FPR95": undefined}

        below, half = negatives - m, np.where(tied, n / 2, 0.0)
        outranked = p * (below + half), p * (below + np.where(tied, half, n))
        crossing = int(np.argmax((above_p + p) / positives >= rate))
        lowest = m[crossing] if tied[crossing] else above_n[crossing]
        fpr = (float(lowest / negatives), float(m[crossing] / negatives))
        return {"AP": ap, "AUROC": _interval(*outranked, positives * negatives), "FPR95": fpr}


def _interval(low: np.ndarray, high: np.ndarray, scale: float) -> tuple[float, float]:
    return max(float(low.sum() / scale) - _SLACK, 0.0), min(float(high.sum() / scale) + _SLACK, 1.0)
