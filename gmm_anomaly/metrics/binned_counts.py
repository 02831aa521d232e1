"""Counts over the float32 scores in 2²² bins, with bounds that hold whatever the order inside a bin was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gmm_anomaly.metrics.protocols import FprRule
from gmm_anomaly.metrics.runs import Runs
from gmm_anomaly.metrics.state import array

_BITS = 22
_CHUNK = 2**22  # runs counted at once, which bounds the working memory
_SLACK = 1e-12  # wider than the rounding of the sums below


def bin_of(scores: np.ndarray) -> np.ndarray:
    """Bin of each float32 score: the top 22 bits of its bit pattern, mapped so that order is kept; int64."""
    bits = scores.view(np.int32)
    ordered = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) + 2**31
    return ordered >> (32 - _BITS)


@dataclass(frozen=True)
class BinnedCounts:
    """Known and anomalous pixels per bin, with the lowest and the highest score seen in it.

    Each bin spans 1024 neighbouring float32 numbers (a relative width of 2⁻¹³). A bin in which only one score
    was ever seen (lowest = highest) is a plain tie and costs no accuracy, so scores that pile up at one
    number, as saturated ones do, stay exact.

    Attributes:
        bins: (n,) int64, the numbers of the bins that hold pixels, ascending; at most 2²², usually far fewer.
        negative, positive: (n,) int64, their known and anomalous pixels.
        low, high: (n,) float32, the lowest and the highest score in them.
    """

    bins: np.ndarray
    negative: np.ndarray
    positive: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def from_runs(cls, negative: Runs, positive: Runs) -> BinnedCounts:
        """Count the float32 runs of the known and of the anomalous pixels."""
        no_count, no_score = np.empty(0, np.int64), np.empty(0, np.float32)
        total = cls(no_count, no_count, no_count, no_score, no_score)
        for runs in (negative, positive):
            for start in range(0, len(runs), _CHUNK):
                values, counts = runs.values[start : start + _CHUNK], runs.counts[start : start + _CHUNK]
                bins = bin_of(values)
                first = np.flatnonzero(np.diff(bins, prepend=-1))
                last = np.append(first[1:], len(bins)) - 1
                pixels = np.add.reduceat(counts, first)
                sides = (pixels, np.zeros_like(pixels))
                if runs is positive:
                    sides = sides[::-1]
                total = total.merged(cls(bins[first], *sides, values[first], values[last]))
        return total

    def merged(self, other: BinnedCounts) -> BinnedCounts:
        """The counts of both, the same whichever comes first."""
        ways = {
            "bins": np.minimum,
            "negative": np.add,
            "positive": np.add,
            "low": np.minimum,
            "high": np.maximum,
        }
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ways}
        order = np.argsort(joined["bins"], kind="stable")
        first = np.flatnonzero(np.diff(joined["bins"][order], prepend=-1))
        if not len(first):
            return self
        return BinnedCounts(*(way.reduceat(joined[name][order], first) for name, way in ways.items()))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BinnedCounts:
        """The counts whose :meth:`state` this is."""
        counts = [array(state, name, np.int64) for name in ("bins", "negative", "positive")]
        return cls(*counts, *(array(state, name, np.float32) for name in ("low", "high")))

    def state(self) -> dict[str, np.ndarray]:
        """The attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def exact(self) -> bool:
        """Whether no bin holds two different scores."""
        return bool(np.all(self.low == self.high))

    def totals(self) -> tuple[Runs, Runs]:
        """Runs of the known and the anomalous pixels, each bin taken for a tie at its lowest score.

        That score is a true threshold: at or above it are the pixels of this bin and of all higher ones.
        """
        negative, positive = self.negative > 0, self.positive > 0
        return (
            Runs(self.low[negative], self.negative[negative]),
            Runs(self.low[positive], self.positive[positive]),
        )

    def intervals(self, rule: FprRule) -> dict[str, tuple[float, float]]:
        """Intervals that hold AP, AUROC and FPR95 of the scores before binning.

        For a bin with p anomalous and n known pixels, T and F of them in higher bins and m = F + n:

        - an anomalous pixel of the bin has precision at most (T+p)/(T+p+F); the j-th of them from the top has
          at least (T+j)/(T+j+m), and Σⱼ 1/(T+m+j) ≤ log1p(p/(T+m+½)) because 1/x is convex;
        - it outranks the N−m known pixels below the bin and at most all n inside it;
        - where the TPR is reached in the bin, between F and m known pixels are above the threshold.

        Bins with a single score contribute their exact value.

        Args:
            rule: one that asks for a TPR to be reached or exceeded.

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

        below = negatives - m
        auroc = _interval(
            p * np.where(tied, below + n / 2, below),
            p * np.where(tied, below + n / 2, below + n),
            positives * negatives,
        )
        tpr = (above_p + p) / positives
        crossing = int(np.argmax(tpr >= rule.rate if rule.kind == "reached" else tpr > rule.rate))
        lowest = m[crossing] if tied[crossing] else above_n[crossing]
        fpr = (float(lowest / negatives), float(m[crossing] / negatives))
        return {"AP": ap, "AUROC": auroc, "FPR95": fpr}


def _interval(low: np.ndarray, high: np.ndarray, scale: float) -> tuple[float, float]:
    return max(float(low.sum() / scale) - _SLACK, 0.0), min(float(high.sum() / scale) + _SLACK, 1.0)
