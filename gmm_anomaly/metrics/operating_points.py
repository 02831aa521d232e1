"""The numbers of a score: AP, AUROC, FPR at a TPR, best F1 and curves, from the counts of distinct scores."""

from __future__ import annotations

import math

import numpy as np

from gmm_anomaly.metrics.protocols import FprRule
from gmm_anomaly.metrics.runs import Runs
from gmm_anomaly.metrics.sorted_scores import Ranked


class OperatingPoints:
    """True and false positives at every threshold that is the score of an anomalous pixel, highest first.

    A pixel is predicted anomalous where its score is at or above the threshold; equal scores are never split.
    The thresholds between two scores of anomalous pixels change neither AP nor AUROC nor the best F1, so they
    are left out: with few anomalous pixels everything below costs next to nothing.

    Undefined numbers follow the Fishyscapes code: without an anomalous pixel AP and AUROC are NaN and every
    FPR is 0; without a known pixel AP is 1 and AUROC and FPR are NaN; without any pixel everything is NaN.

    Args:
        negative: scores of the known pixels.
        positive: runs of the anomalous pixels.
    """

    def __init__(self, negative: Ranked, positive: Runs) -> None:
        self.negative, self.positive = negative, positive
        self.negatives, self.positives = negative.total, positive.total
        below, up_to = negative.ranks(positive.values)
        self.threshold = positive.values[::-1]
        self.hits = positive.counts[::-1]
        self.tp = np.cumsum(self.hits)
        self.fp = self.negatives - below[::-1]  # at or above the threshold
        self.fp_above = self.negatives - up_to[::-1]

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

    def index(self, rule: FprRule) -> int:
        """Which of the thresholds a rule reads the FPR at; there must be a positive pixel."""
        tpr = self.tp / self.positives
        if rule.kind == "reached":
            return int(np.argmax(tpr >= rule.rate))
        if rule.kind == "exceeded":
            return int(np.argmax(tpr > rule.rate))
        return len(tpr) - 1 - int(np.argmin(np.abs(tpr - rule.rate)[::-1]))

    def fpr(self, rule: FprRule) -> float:
        """False positive rate where ``rule`` reads it."""
        if not self.negatives:
            return math.nan
        if not self.positives:
            return 0.0
        at = self.index(rule)
        # "nearest" reads a plateau at its far end, just above the next score of an anomalous pixel.
        far_end = rule.kind == "nearest" and at + 1 < len(self.tp)
        return float((self.fp_above[at + 1] if far_end else self.fp[at]) / self.negatives)

    def best_f1(self) -> tuple[float, float]:
        """Largest F1 and the highest threshold that has it (predictions: score ≥ threshold).

        Without an anomalous pixel: 0 and the highest score; without any pixel: NaN, NaN.
        """
        if not self.positives:
            if not self.negatives:
                return math.nan, math.nan
            return 0.0, float(self.negative.at_rank(np.array(self.negatives - 1)))
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
            ``fpr``, ``tpr`` (the same as ``recall``). The first point is threshold +inf with nothing
            predicted and precision 1; the last threshold is the lowest score. Rates without pixels to count
            are NaN.
        """
        if points < 4:
            raise ValueError(f"points must be at least 4, found {points}")
        sides = [side for side in (self.negative, self.positive) if side.total]
        most = (points - 1) // 2
        wanted = [np.linspace(0, side.total - 1, min(most, side.total)).astype(np.int64) for side in sides]
        chosen = [side.at_rank(ranks) for side, ranks in zip(sides, wanted, strict=True)]
        threshold = np.unique(np.concatenate([self.threshold[:0], *chosen]))
        tp, fp = (
            np.concatenate([[0], (side.total - side.ranks(threshold)[0])[::-1]])
            for side in (self.positive, self.negative)
        )
        threshold = threshold[::-1]
        predicted = tp + fp
        tpr = tp / self.positives if self.positives else np.full(len(tp), math.nan)
        fpr = fp / self.negatives if self.negatives else np.full(len(fp), math.nan)
        return {
            "threshold": np.concatenate([[math.inf], threshold]).astype(np.float64),
            "precision": np.where(predicted > 0, tp / np.maximum(predicted, 1), 1.0),
            "recall": tpr,
            "fpr": fpr,
            "tpr": tpr.copy(),
        }
