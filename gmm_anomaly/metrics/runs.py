"""Sorted scores and how many pixels have each: the one form from which every pixel metric is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Merging walks through blocks of this many entries, which stay in the cache and bound the working memory.
_BLOCK = 2**16

# The float16 numbers in ascending order, without NaN and −0: as bit patterns and as float32.
_HALF_PATTERNS = np.concatenate([np.arange(0xFC00, 0x8000, -1), np.arange(0x0000, 0x7C01)])
_HALF_VALUES = _HALF_PATTERNS.astype(np.uint16).view(np.float16).astype(np.float32)


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
