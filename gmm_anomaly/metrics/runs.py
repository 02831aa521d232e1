"""Distinct scores and how many pixels have each: the form in which every pixel metric is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gmm_anomaly.metrics.state import array

# Merging walks through blocks of this many entries, which stay in the cache and bound the working memory.
_BLOCK = 2**16

# The float16 numbers in ascending order, without NaN and −0: as bit patterns and as float32.
_HALF_PATTERNS = np.concatenate([np.arange(0xFC00, 0x8000, -1), np.arange(0x0000, 0x7C01)])
_HALF_VALUES = _HALF_PATTERNS.astype(np.uint16).view(np.float16).astype(np.float32)


class TooManyScores(Exception):
    """More distinct scores than there is room for."""


@dataclass(frozen=True)
class Runs:
    """Distinct scores with their counts.

    Attributes:
        values: (n,) float32 or float64, strictly ascending, no NaN and no −0.
        counts: (n,) int64, all positive.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, dtype: type = np.float32) -> Runs:
        return cls(np.empty(0, dtype), np.empty(0, np.int64))

    @classmethod
    def from_state(cls, state: Mapping[str, Any], values: str, counts: str, dtype: DTypeLike) -> Runs:
        """The runs whose arrays stand in ``state`` under the keys ``values`` and ``counts``."""
        return cls(array(state, values, dtype), array(state, counts, np.int64))

    @classmethod
    def from_scores(cls, scores: np.ndarray) -> Runs:
        """Count equal scores.

        Args:
            scores: (N,) float16, float32 or float64 without NaN; float32 and float64 are sorted in place.

        Returns:
            The runs; float16 scores come back as float32.
        """
        if scores.dtype == np.float16:
            return cls.from_half_counts(count_half(scores))
        if not scores.size:
            return cls.empty(scores.dtype.type)
        scores.sort()
        ends = np.ones(scores.size, np.bool_)
        np.not_equal(scores[1:], scores[:-1], out=ends[:-1])
        last = np.flatnonzero(ends)
        values = scores[last]
        values[values == 0] = 0.0  # −0 and 0 are one score; which of them came last must not show
        counts = np.empty(len(last), np.int64)
        counts[0] = last[0] + 1
        np.subtract(last[1:], last[:-1], out=counts[1:])
        return cls(values, counts)

    @classmethod
    def from_half_counts(cls, counts: np.ndarray) -> Runs:
        """Runs of a (65536,) table of counts per float16 bit pattern, as :func:`count_half` makes it."""
        ordered = counts[_HALF_PATTERNS]
        seen = np.flatnonzero(ordered)
        return cls(_HALF_VALUES[seen], ordered[seen])

    @classmethod
    def merge(cls, parts: Sequence[Runs], at_most: int | None = None) -> Runs:
        """Add the counts of equal scores. The result does not depend on the order of ``parts``.

        Args:
            parts: runs of one dtype, at least one.
            at_most: largest number of distinct scores wanted.

        Raises:
            TooManyScores: there are more than ``at_most``.
        """
        longest = max(parts, key=len)
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            if at_most is not None and len(longest) > at_most:
                raise TooManyScores
            return longest
        cuts = longest.values[_BLOCK::_BLOCK]
        bounds = [np.concatenate([[0], np.searchsorted(part.values, cuts), [len(part)]]) for part in parts]
        blocks: list[Runs] = []
        size = 0
        for block in range(len(cuts) + 1):
            pieces = [slice(bound[block], bound[block + 1]) for bound in bounds]
            values = np.concatenate([part.values[piece] for part, piece in zip(parts, pieces, strict=True)])
            counts = np.concatenate([part.counts[piece] for part, piece in zip(parts, pieces, strict=True)])
            order = np.argsort(values, kind="stable")  # timsort: the pieces are sorted already
            values = values[order]
            first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
            blocks.append(cls(values[first], np.add.reduceat(counts[order], first)))
            size += len(first)
            if at_most is not None and size > at_most:
                raise TooManyScores
        return cls(np.concatenate([b.values for b in blocks]), np.concatenate([b.counts for b in blocks]))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def total(self) -> int:
        """Number of pixels."""
        return int(self.counts.sum())

    def ranks(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many pixels score below, and how many at or below each of ``at`` (ascending); int64."""
        sums = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.counts, out=sums[1:])
        below, up_to = (np.searchsorted(self.values, at, side=side) for side in ("left", "right"))
        return sums[below], sums[up_to]

    def at_rank(self, rank: np.ndarray) -> np.ndarray:
        """The score of the pixel with ``rank`` lower or equal ones before it, 0 being the lowest."""
        return self.values[np.searchsorted(np.cumsum(self.counts), rank, side="right")]


def count_half(scores: np.ndarray) -> np.ndarray:
    """Count (N,) float16 scores per bit pattern: (65536,) int64, with −0 counted as 0."""
    counts = np.bincount(scores.view(np.uint16), minlength=65536)
    counts[0x0000] += counts[0x8000]
    counts[0x8000] = 0
    return counts
