"""Pixel metrics of an anomaly score under a named protocol, streaming over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from gmm_anomaly.metrics.frame_bins import FrameBins
from gmm_anomaly.metrics.frames import anomaly_masks, as_scores, check_same_shape, to_precision
from gmm_anomaly.metrics.histogram import score_histogram
from gmm_anomaly.metrics.image_means import ImageMeans
from gmm_anomaly.metrics.operating_points import OperatingPoints
from gmm_anomaly.metrics.protocols import (
    FPR_RULES,
    PRECISIONS,
    PROTOCOL_FPR_RULE,
    PROTOCOLS,
    Precision,
    ProtocolName,
)
from gmm_anomaly.metrics.score_counts import FloatCounts, HalfCounts, ScoreStore
from gmm_anomaly.metrics.state import State, check_alike, check_header, header, scalar

_COUNTERS = ("images", "void", "saturated")


class PixelMetrics:
    """AP, AUROC, FPR95 and best F1 of anomaly scores (higher = more anomalous).

    Everything that is added up is a whole number, so the result depends neither on the order of the images
    nor on how they were spread over batches, shards or processes.

    Args:
        protocol: ``"pooled"`` (default), ``"fishyscapes"``, ``"smiyc"``, ``"smiyc_uniform"`` or
            ``"per_image"``; :data:`~gmm_anomaly.metrics.protocols.PROTOCOLS` says what each is.
        precision: scores are rounded to it first, and equal scores are never ranked. ``"float16"`` needs 1 MB
            and is exact for scores stored as float16 (SegmentMeIfYouCan's files). ``"float32"`` is exact up
            to ``max_distinct`` different scores; beyond, AP, AUROC and FPR95 come with certified intervals (a
            relative resolution of 2⁻¹³; ties stay exact).
        max_distinct: how many different (score, label) pairs ``"float32"`` keeps. At 12 bytes each the
            default takes 0.4 GB when full, and up to 1.5 GB for a moment when more are merged in.
    """

    def __init__(
        self,
        protocol: ProtocolName = "pooled",
        precision: Precision = "float32",
        *,
        max_distinct: int = 2**25,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        if max_distinct < 1:
            raise ValueError(f"max_distinct must be at least 1, found {max_distinct}")
        self.protocol, self.precision, self.max_distinct = protocol, precision, int(max_distinct)
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._store = self._new_store()

    def _new_store(self) -> ScoreStore:
        if self.protocol in ("smiyc", "smiyc_uniform"):
            return FrameBins(uniform=self.protocol == "smiyc_uniform")
        counts = HalfCounts() if self.precision == "float16" else FloatCounts(self.max_distinct)
        return ImageMeans(counts) if self.protocol == "per_image" else counts

    def update(self, score: Any, label: Any, name: str | None = None) -> None:
        """Count one image.

        Args:
            score: (H, W) float16, float32 or float64, higher = more anomalous; infinities are allowed.
            label: (H, W) integers or booleans: 0 known, 1 anomaly, 255 void.
            name: what to call the image in an error.

        Raises:
            ValueError: NaN among the scores, other labels, or shapes that differ. TypeError: not numbers.
                Nothing is counted then.
        """
        image = f"image {name!r}" if name is not None else f"image number {self._counters['images'] + 1}"
        scores = as_scores(score, image)
        labels = np.asarray(label)
        check_same_shape(scores, labels, "score and label", image)
        known, anomalous, void = anomaly_masks(labels, image)
        scores, saturated = to_precision(scores, self.precision)
        self._store.add(scores[known], scores[anomalous])
        for counter, value in zip(_COUNTERS, (1, void, saturated), strict=True):
            self._counters[counter] += value

    def merge(self, other: PixelMetrics) -> None:
        """Add what ``other`` has counted; ``other`` keeps it. Both must have been made alike."""
        check_alike(self, other)
        self._store.merge(other._store)
        for counter, value in other._counters.items():
            self._counters[counter] += value

    def settings(self) -> dict[str, Any]:
        """What the metrics were made with."""
        return {"protocol": self.protocol, "precision": self.precision, "max_distinct": self.max_distinct}

    def state(self) -> State:
        """Everything counted so far, as numbers, strings and arrays: equal pixels give equal states."""
        return header("PixelMetrics") | self.settings() | self._counters | self._store.state()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PixelMetrics:
        """The metrics whose :meth:`state` this is, also read back from ``.npz``, JSON or torch."""
        check_header(state, "PixelMetrics")
        metrics = cls(
            cast(ProtocolName, scalar(state, "protocol")),
            cast(Precision, scalar(state, "precision")),
            max_distinct=scalar(state, "max_distinct"),
        )
        metrics._counters = {counter: int(scalar(state, counter)) for counter in _COUNTERS}
        metrics._store.load(state)
        return metrics

    def compute(self) -> dict[str, Any]:
        """The numbers of everything counted so far.

        Returns:
            Fractions ``AP``, ``AUROC``, ``FPR95``, ``best_f1``; ``best_f1_threshold`` in units of the score
            (the highest threshold with the best F1 when predicting score ≥ threshold). ``protocol`` and
            ``precision``. ``exact``: whether the numbers are the protocol's own for the rounded scores; where
            they are not, ``AP_interval``, ``AUROC_interval`` and ``FPR95_interval`` hold the true values
            (low, high), and ``best_f1`` is one that its threshold really reaches. Counts: ``images``,
            ``anomaly_pixels``, ``known_pixels``, ``void_pixels`` and, for ``per_image``, ``images_used``.
            ``note``: why a number is undefined (NaN, or by a convention), what was lost, or None.

            Under ``per_image`` AP, AUROC and FPR95 are means over images, best F1 is over all pixels.
        """
        points = OperatingPoints(*self._store.totals())
        f1, threshold = points.best_f1()
        rule = PROTOCOL_FPR_RULE[self.protocol]
        result: dict[str, Any] = {
            "AP": points.average_precision,
            "AUROC": points.auroc,
            "FPR95": points.fpr(FPR_RULES[rule]),
            "best_f1": f1,
            "best_f1_threshold": threshold,
            "protocol": self.protocol,
            "precision": self.precision,
            "exact": True,
            "images": self._counters["images"],
            "anomaly_pixels": points.positives,
            "known_pixels": points.negatives,
            "void_pixels": self._counters["void"],
        }
        notes = [points.note()]
        intervals = self._store.intervals(FPR_RULES[rule])
        if intervals is not None:
            result["exact"] = False
            result |= {f"{key}_interval": interval for key, interval in intervals.items()}
        if isinstance(self._store, ImageMeans):
            means = self._store
            result |= {"AP": means.mean("AP"), "AUROC": means.mean("AUROC"), "FPR95": means.mean(rule)}
            result["images_used"] = means.images
            if not means.images:
                notes = ["no image holds both known and anomalous pixels: the means are 0 by convention"]
        if isinstance(self._store, FrameBins) and self._store.dropped:
            notes.append(f"{self._store.dropped} scores outside [-0.01, 1.01] were dropped")
        if self._counters["saturated"]:
            notes.append(f"{self._counters['saturated']} scores beyond {self.precision} became infinite")
        result["note"] = "; ".join(note for note in notes if note) or None
        return result

    def fpr(self, rule: str) -> float:
        """False positive rate by another paper's rule, as a fraction.

        Args:
            rule: ``"first"`` (TPR ≥ 0.95), ``"nearest"`` (TPR nearest to 0.95), ``"rba"`` (TPR > 0.95) or
                ``"maskomaly"`` (TPR > 0.90). Under ``per_image`` it is applied to each image.
        """
        if rule not in FPR_RULES:
            raise ValueError(f"rule must be one of {', '.join(FPR_RULES)}, found {rule!r}")
        if isinstance(self._store, ImageMeans):
            return self._store.mean(rule)
        return OperatingPoints(*self._store.totals()).fpr(FPR_RULES[rule])

    def curve(self, points: int = 1000) -> dict[str, np.ndarray]:
        """Points of the curves over all pixels; see :meth:`OperatingPoints.curve` for what they are."""
        return OperatingPoints(*self._store.totals()).curve(points)

    def histogram(self, bins: int = 100) -> dict[str, np.ndarray]:
        """Pixels per bin of the score; see :func:`score_histogram`. Under ``smiyc`` scores are known only by
        the bins of their frames, and counted at the lower edges.
        """
        return score_histogram(*self._store.totals(), bins, half=self.precision == "float16")
