"""The numbers of a score, its curves and its histogram, from the scores of known and anomalous pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gmm_anomaly.metrics.score_counts import ScoreCounts, below, row_at

# A few extreme scores would squeeze all others of a histogram into one bin: this share of either label may
# lie outside.
OUTSIDE = 0.001


@dataclass(frozen=True)
class FprRule:
    """At which threshold, walking down from the highest score, the false positive rate is read.

    Attributes:
        rate: the true positive rate aimed at.
        kind: ``reached`` (first TPR ≥ rate), ``exceeded`` (first TPR > rate) or ``nearest`` (|TPR − rate|
            smallest in float64, the first such threshold when walking up from TPR = 1; of a plateau of equal
            TPR below 1 that is the end with the larger FPR).
    """

    rate: float
    kind: Literal["reached", "exceeded", "nearest"]


class OperatingPoints:
    """True and false positives at every threshold that is the score of an anomalous pixel, highest first.

    A pixel is predicted anomalous where its score is at or above the threshold; equal scores are never split.
    The thresholds between two scores of anomalous pixels change neither AP nor AUROC nor the best F1, so they
    are left out.

    Undefined numbers follow the Fishyscapes code: without an anomalous pixel AP and AUROC are NaN and every
    FPR is 0; without a known pixel AP is 1 and AUROC and FPR are NaN; without any pixel everything is NaN.
    """

    def __init__(self, counts: ScoreCounts) -> None:
        self.counts = counts
        self.negatives, self.positives = int(counts.known.sum()), int(counts.anomalous.sum())
        known, hits = counts.known[::-1], counts.anomalous[::-1]
        at = np.flatnonzero(hits)
        self.threshold, self.hits = counts.low[::-1][at], hits[at]
        self.tp, self.fp = np.cumsum(hits)[at], np.cumsum(known)[at]  # at or above the threshold
        self.fp_above = self.fp - known[at]

    @property
    def average_precision(self) -> float:
        """Sum over the thresholds of (recall step) · (precision there), as scikit-learn defines it."""
        if not self.positives:
            return math.nan
        return float((self.hits * (self.tp / (self.tp + self.fp))).sum() / self.positives)

    @property
    def auroc(self) -> float:
        """Area under the ROC curve by trapezoids: the chance that an anomalous pixel outranks a known one."""
        if not self.positives or not self.negatives:
            return math.nan
        outranked = 1.0 - (self.fp + self.fp_above) / (2.0 * self.negatives)
        return float((self.hits * outranked).sum() / self.positives)

    def fpr(self, rule: FprRule) -> float:
        """False positive rate where ``rule`` reads it."""
        if not self.negatives:
            return math.nan
        if not self.positives:
            return 0.0
        tpr = self.tp / self.positives
        if rule.kind == "nearest":
            at = len(tpr) - 1 - int(np.argmin(np.abs(tpr - rule.rate)[::-1]))
            # A plateau is read at its far end, just above the next score of an anomalous pixel.
            fp = self.fp_above[at + 1] if at + 1 < len(tpr) else self.fp[at]
        else:
            fp = self.fp[np.argmax(tpr >= rule.rate if rule.kind == "reached" else tpr > rule.rate)]
        return float(fp / self.negatives)

    def best_f1(self) -> tuple[float, float]:
        """Largest F1 and the highest threshold that has it (predictions: score ≥ threshold).

        Without an anomalous pixel: 0 and the highest score; without any pixel: NaN, NaN.
        """
        if not self.positives:
            if not self.negatives:
                return math.nan, math.nan
            return 0.0, float(self.counts.low[-1])
        f1 = 2.0 * self.tp / (self.tp + self.fp + self.positives)
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.threshold[best])

    def note(self) -> str | None:
        """Why numbers are undefined, or None."""
        if not self.positives and not self.negatives:
            return "no valid pixel: every number is undefined"
        if not self.positives:
            return "no anomalous pixel: AP and AUROC are undefined, FPR and F1 are 0 by convention"
        if not self.negatives:
            return "no known pixel: AUROC and FPR are undefined, AP is 1 by definition"
        return None

    def curve(self, points: int) -> dict[str, np.ndarray]:
        """Points of the precision-recall and ROC curves.

        Args:
            points: how many at most, at least 4. They lie evenly in the ranks of the known and of the
                anomalous pixels; each is exact.

        Returns:
            float64 arrays of one length, thresholds descending: ``threshold``, ``precision``, ``recall``,
            ``fpr`` (``recall`` is the TPR). The first point is threshold +inf with nothing
            predicted and precision 1; the last threshold is the lowest score. Rates without pixels to count
            are NaN.
        """
        if points < 4:
            raise ValueError(f"points must be at least 4, found {points}")
        rows = np.empty(0, np.int64)
        for side in (self.counts.known, self.counts.anomalous):
            if total := int(side.sum()):
                ranks = np.linspace(0, total - 1, min((points - 1) // 2, total)).astype(np.int64)
                rows = np.union1d(rows, row_at(side, ranks))
        tp, fp = (
            np.concatenate([[0], (side.sum() - below(side, rows))[::-1]])
            for side in (self.counts.anomalous, self.counts.known)
        )
        predicted = tp + fp
        tpr = tp / self.positives if self.positives else np.full(len(tp), math.nan)
        return {
            "threshold": np.concatenate([[math.inf], self.counts.low[rows][::-1]]).astype(np.float64),
            "precision": np.where(predicted > 0, tp / np.maximum(predicted, 1), 1.0),
            "recall": tpr,
            "fpr": fp / self.negatives if self.negatives else np.full(len(fp), math.nan),
        }


def score_histogram(counts: ScoreCounts, bins: int, *, half: bool = False) -> dict[str, np.ndarray]:
    """Pixels per bin of the score, for either label.

    Args:
        counts: of the scores.
        bins: how many at most; fewer where the scores' type has no more numbers in the range.
        half: scores are float16 numbers: every bin then spans equally many of them, lest the histogram show
            a comb.

    Returns:
        ``edges`` (n + 1,) float64, ascending, from the lower of the 0.1 % quantiles of the two labels' finite
        scores to the higher of their 99.9 % quantiles; ``known``, ``anomalous`` (n,) int64, pixels in
        [edge, next edge), the last bin closed; ``known_outside``, ``anomalous_outside`` (2,) int64, pixels
        below the first and above the last edge. Without a finite score n is 0 and ``edges`` is empty.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    sides = {"known": counts.known, "anomalous": counts.anomalous}
    dtype = counts.low.dtype
    finite = np.isfinite(counts.low)
    scores, ends = counts.low[finite], []
    for side in sides.values():
        if last := int(side[finite].sum()):
            margin = int(OUTSIDE * (last - 1))
            ends += scores[row_at(side[finite], np.array([margin, last - 1 - margin]))].tolist()
    edges = np.zeros(0, dtype)
    if ends:
        low, high = min(ends), max(ends)
        if low == high:
            low, high = (float(np.nextafter(dtype.type(low), way)) for way in (-np.inf, np.inf))
        edges = np.linspace(low, high, bins + 1).astype(dtype)
        if half:  # a whole multiple of the coarsest spacing wide
            # From 2¹⁵ on it is the same; the bins of infinities reach beyond the largest float16.
            spacing = float(np.spacing(np.float16(min(max(abs(low), abs(high)), 2**15))))
            start = np.floor(low / spacing) * spacing
            width = np.ceil((high - start) / bins / spacing) * spacing
            edges = (start + width * np.arange(np.ceil((high - start) / width) + 1)).astype(dtype)
        edges = np.unique(edges)
    found = {"edges": edges.astype(np.float64)}
    # Without an edge, infinities lie below and above nothing.
    at = edges if len(edges) else np.array([-np.inf], dtype)
    rows = np.searchsorted(counts.low, at)
    rows[-1] = np.searchsorted(counts.low, at[-1], side="right")
    for name, side in sides.items():
        lower = below(side, rows)
        found[name] = np.diff(lower)
        found[f"{name}_outside"] = np.array([lower[0], side.sum() - lower[-1]], np.int64)
    return found
