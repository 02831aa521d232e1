"""Known and anomalous pixels per score: what every pixel metric follows from; SegmentMeIfYouCan's bins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_BIN_SHIFT = 39  # of the 64 bits of a float64: sign, exponent and 13 bits behind it are left
_SLACK = 1e-12  # wider than the rounding of the sums of an interval

# The float16 numbers in ascending order, without NaN and −0: as bit patterns and as float32.
_HALF_PATTERNS = np.concatenate([np.arange(0xFC00, 0x8000, -1), np.arange(0x0000, 0x7C01)])
_HALF_VALUES = _HALF_PATTERNS.astype(np.uint16).view(np.float16).astype(np.float32)

QUANTILES_PER_LABEL = 384
UNIFORM_BINS = 4096
UNIFORM_RANGE = (-0.01, 1.01)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ScoreCounts:
    """Pixels per score, or per bin of neighbouring scores.

    Each bin spans 1024 neighbouring float32 numbers, or the float64 ones between them (a relative width of
    2⁻¹³). A bin in which only one score was ever seen (lowest = highest) is a tie and costs no accuracy,
    so scores that pile up at one number, as saturated ones do, stay exact.

    Attributes:
        low, high: (n,) float32 or float64 without NaN and −0, ascending: the lowest and the highest score of
            a row. A row counts as a tie at its lowest, which is a true threshold: at or above it are the
            pixels of this row and of all higher ones.
        known, anomalous: (n,) int64, pixels in each row; at least one of both.
        binned: rows are bins; otherwise each has one score.
    """

    low: np.ndarray
    high: np.ndarray
    known: np.ndarray
    anomalous: np.ndarray
    binned: bool = False

    @classmethod
    def of(cls, known: np.ndarray, anomalous: np.ndarray) -> ScoreCounts:
        """Count the (N,) and (P,) scores of known and anomalous pixels, of one dtype and without NaN;
        float16 come back as float32."""
        if known.dtype == np.float16:
            sides = (known.view(np.uint16), anomalous.view(np.uint16))
            return cls.of_half(np.stack([np.bincount(patterns, minlength=65536) for patterns in sides]))
        # −0 becomes 0.
        scores, pixels = np.unique(np.concatenate([known, anomalous]) + 0, return_counts=True)
        hits = np.bincount(np.searchsorted(scores, np.sort(anomalous)), minlength=len(scores))
        return cls(scores, scores, pixels - hits, hits)

    @classmethod
    def of_half(cls, counts: np.ndarray) -> ScoreCounts:
        """From the known and the anomalous pixels, (2, 65536), of each bit pattern of a float16."""
        counts[:, 0x0000] += counts[:, 0x8000]  # −0 counts as 0
        counts = counts[:, _HALF_PATTERNS]
        seen = np.flatnonzero(counts.any(axis=0))
        return cls(_HALF_VALUES[seen], _HALF_VALUES[seen], *counts[:, seen])

    @classmethod
    def merged(cls, parts: Iterable[ScoreCounts], max_distinct: int) -> ScoreCounts:
        """Add the counts of equal scores; in bins as soon as there are more than ``max_distinct`` scores.

        Whether the result is binned, and what it holds, depends neither on the order of the parts nor on
        how pixels were spread over them.
        """
        parts = [part for part in parts if len(part)] or [cls.of(*np.empty((2, 0), np.float32))]
        if len(parts) == 1 and (parts[0].binned or len(parts[0]) <= max_distinct):
            return parts[0]
        low = np.concatenate([part.low for part in parts])
        order = np.argsort(low, kind="stable")  # timsort: the parts are sorted already
        low = low[order]
        binned = any(part.binned for part in parts)
        first = _starts(_bins(low) if binned else low)
        if len(first) > max_distinct and not binned:
            binned, first = True, _starts(_bins(low))

        def joined(name: str, how: np.ufunc) -> np.ndarray:
            return how.reduceat(np.concatenate([getattr(part, name) for part in parts])[order], first)

        lowest = low[first]
        highest = joined("high", np.maximum) if binned else lowest
        return cls(lowest, highest, joined("known", np.add), joined("anomalous", np.add), binned)

    def __len__(self) -> int:
        return len(self.low)

    @property
    def pixels(self) -> int:
        return int(self.known.sum() + self.anomalous.sum())

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
        n, p = self.known[::-1].astype(np.float64), self.anomalous[::-1].astype(np.float64)
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


def _starts(ascending: np.ndarray) -> np.ndarray:
    """Where the groups of equal entries begin."""
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def _bins(scores: np.ndarray) -> np.ndarray:
    return bins(scores.astype(np.float64).view(np.int64))


def bins(bits: Any) -> Any:
    """Bit patterns of float64 scores, an int64 array or tensor -> numbers of their bins: the top bits, mapped
    so that order is kept."""
    return (bits ^ ((bits >> 63) & (2**63 - 1))) >> _BIN_SHIFT


def row_at(counts: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Row of the pixel with ``rank`` others in lower rows or its own before it; ``counts``: pixels a row."""
    return np.searchsorted(np.cumsum(counts), rank, side="right")


def below(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How many pixels are in lower rows than each of ``rows``; ``counts``: pixels a row."""
    return np.concatenate([[0], np.cumsum(counts)])[rows]


def smiyc_bins(frame: ScoreCounts, uniform: bool) -> ScoreCounts:
    """SegmentMeIfYouCan's bins of one frame, each as a row at its lower edge (predicted from there up).

    Frames whose bins share a threshold have their counts added there. The reference code keeps two entries
    where several frames share the highest threshold of all, so that its AP depends on the order of the frames
    (by up to 2·10⁻⁴ on its own kind of data); here the order never matters.

    Args:
        frame: exact counts of float16 or float32 scores.
        uniform: 4096 equal bins over [−0.01, 1.01]; scores outside, too high ones as well, are in no bin but
            in the totals, as in the reference: in a row below all bins. Otherwise the edges are 384 quantiles
            of each label that is there, and a margin.
    """
    if not len(frame):
        return frame
    if uniform:
        edges = np.linspace(*UNIFORM_RANGE, UNIFORM_BINS + 1, dtype=np.float32).astype(np.float64)
        edges[-1] = np.nextafter(edges[-1], np.inf)  # the last bin is closed
    else:
        sides = [side for side in (frame.known, frame.anomalous) if side.any()]
        inner = np.concatenate([_quantiles(frame.low, side) for side in sides])
        lowest, highest = float(inner.min()), float(inner.max())
        margin = max(0.01 * (highest - lowest), 0.01)
        # Beside very large scores the margin is lost in rounding: the next number then keeps the ends apart.
        low_end = min(lowest - margin, float(np.nextafter(lowest, -np.inf)))
        high_end = max(highest + margin, float(np.nextafter(highest, np.inf)))
        edges = np.unique(np.concatenate([[low_end, high_end], inner]))
    # The smallest float32 not below an edge has as many float32 scores below it; searching it is far faster.
    with np.errstate(over="ignore"):
        rounded = edges.astype(np.float32)
        rounded = np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
    rows = np.searchsorted(frame.low, rounded)
    if not uniform:  # infinities belong to the first and the last bin
        rows[0], rows[-1] = 0, len(frame)
    counts = np.stack([np.diff(below(side, rows)) for side in (frame.known, frame.anomalous)])
    starts = edges[:-1]
    if uniform:
        totals = np.array([[frame.known.sum()], [frame.anomalous.sum()]])
        counts = np.concatenate([totals - counts.sum(axis=1, keepdims=True), counts], axis=1)
        starts = np.concatenate([2 * edges[:1] - edges[1], starts])
    seen = np.flatnonzero(counts.any(axis=0))
    return ScoreCounts(starts[seen], starts[seen], *counts[:, seen])


def _quantiles(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """At most 384 evenly spaced quantiles of one frame and label, float64, with linear interpolation as
    ``numpy.quantile`` has them; infinities stand for the largest float32 numbers.
    """
    last = int(counts.sum()) - 1
    rank = np.linspace(0.0, 1.0, min(QUANTILES_PER_LABEL, last + 1)) * last
    lower = np.floor(rank).astype(np.int64)
    low, high = (
        np.clip(scores[row_at(counts, at)].astype(np.float64), -_LARGEST, _LARGEST)
        for at in (lower, np.minimum(lower + 1, last))
    )
    weight, step = rank - lower, high - low
    return np.where(weight < 0.5, low + step * weight, high - step * (1 - weight))
