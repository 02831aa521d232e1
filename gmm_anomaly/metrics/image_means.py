"""Means over images of per-image numbers, added up in whole numbers so that no order of images shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gmm_anomaly.metrics.operating_points import OperatingPoints
from gmm_anomaly.metrics.protocols import FPR_RULES, FprRule
from gmm_anomaly.metrics.runs import Runs
from gmm_anomaly.metrics.score_counts import ScoreStore
from gmm_anomaly.metrics.sorted_scores import Ranked, ranked
from gmm_anomaly.metrics.state import State, array

# Fractions are added as multiples of 2⁻⁴⁴ (6·10⁻¹⁴): room for half a million images in 64 bits.
_UNIT = 2.0**44

COLUMNS = ("AP", "AUROC", *FPR_RULES)


class ImageMeans:
    """AP, AUROC and FPR of every image that holds known and anomalous pixels, averaged without weights.

    Images with pixels of one kind only are skipped, as StreetHazards' and PAnS' code do. The pooled counts
    are kept beside the means, because best F1, its threshold and the curves have no per-image definition.

    Args:
        pooled: store for the counts over all images.
    """

    def __init__(self, pooled: ScoreStore) -> None:
        self._pooled = pooled
        self._sums = np.zeros(len(COLUMNS), np.int64)
        self.images = 0

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        if negative.size and positive.size:
            points = OperatingPoints(ranked(negative), Runs.from_scores(positive))
            row = [points.average_precision, points.auroc, *(points.fpr(rule) for rule in FPR_RULES.values())]
            self._sums += np.rint(np.multiply(row, _UNIT)).astype(np.int64)
            self.images += 1
        self._pooled.add(negative, positive)

    def merge(self, other: ImageMeans) -> None:
        self._pooled.merge(other._pooled)
        self._sums += other._sums
        self.images += other.images

    def state(self) -> State:
        return self._pooled.state() | {"image_sums": self._sums.copy(), "images_used": self.images}

    def load(self, state: Mapping[str, Any]) -> None:
        self._pooled.load(state)
        self._sums = array(state, "image_sums", np.int64).copy()
        self.images = int(array(state, "images_used"))

    def totals(self) -> tuple[Ranked, Runs]:
        return self._pooled.totals()

    def intervals(self, rule: FprRule) -> None:
        """None: the means are exact even where the pooled counts are binned."""
        return None

    def mean(self, column: str) -> float:
        """Mean of one of ``COLUMNS`` as a fraction; 0 without any image to average, as in PAnS."""
        return float(self._sums[COLUMNS.index(column)] / _UNIT / self.images) if self.images else 0.0
