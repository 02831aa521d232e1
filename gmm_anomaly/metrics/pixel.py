"""Pixel metrics of an anomaly score under a named protocol, streaming over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gmm_anomaly.metrics.base import (
    Metric,
    State,
    anomaly_masks,
    as_scores,
    check_same_shape,
    to_precision,
)
from gmm_anomaly.metrics.curves import FprRule, OperatingPoints, score_histogram
from gmm_anomaly.metrics.runs import FrameBins, Runs
from gmm_anomaly.metrics.score_counts import FloatCounts, HalfCounts

PROTOCOLS: dict[str, str] = {
    "pooled": "all valid pixels of the data set, one threshold per distinct score",
    "fishyscapes": "as pooled, by the rules of the Fishyscapes benchmark (bdl-benchmark)",
    "smiyc": "SegmentMeIfYouCan: 768 quantile bins per frame, pooled by threshold",
    "smiyc_uniform": "SegmentMeIfYouCan's variant with 4096 equal bins between -0.01 and 1.01",
    "per_image": "StreetHazards, PAnS: mean over the images that hold known and anomalous pixels",
}

PRECISIONS: tuple[str, ...] = ("float32", "float16")

FPR_RULES: dict[str, FprRule] = {
    "first": FprRule(0.95, "reached"),  # Fishyscapes, SegmentMeIfYouCan
    "nearest": FprRule(0.95, "nearest"),  # StreetHazards (Hendrycks et al.), PAnS
    "rba": FprRule(0.95, "exceeded"),  # RbA, DenseHybrid
    "maskomaly": FprRule(0.90, "exceeded"),  # Maskomaly, whose tables call it FPR
}

# Of an image under "per_image". Fractions are added as multiples of 2⁻⁴⁴ (6·10⁻¹⁴): whole numbers, so that no
# order of images shows, with room for half a million images in 64 bits.
_COLUMNS = ("AP", "AUROC", *FPR_RULES)
_UNIT = 2.0**44


class PixelMetrics(Metric):
    """AP, AUROC, FPR95 and best F1 of anomaly scores (higher = more anomalous).

    Everything that is added up is a whole number, so the result depends neither on the order of the images
    nor on how they were spread over batches, shards or processes.

    Args:
        protocol: ``"pooled"`` (default), ``"fishyscapes"``, ``"smiyc"``, ``"smiyc_uniform"`` or
            ``"per_image"``; :data:`PROTOCOLS` says what each is.
        precision: scores are rounded to it first, and equal scores are never ranked. ``"float16"`` needs 1 MB
            and is exact for scores stored as float16 (SegmentMeIfYouCan's files). ``"float32"`` is exact up
            to ``max_distinct`` different scores; beyond, AP, AUROC and FPR95 come with certified intervals (a
            relative resolution of 2⁻¹³; ties stay exact). None: as float32, but float64 scores and integers
            are ranked as they are (the ``smiyc`` protocols round them to float32).
        max_distinct: how many different (score, label) pairs are kept unless ``"float16"``. At 12 bytes each
            (16 for float64) the default takes 0.4 GB when full, and up to 1.5 GB for a moment when more are
            merged in.
    """

    SETTINGS = ("protocol", "precision", "max_distinct")
    COUNTS = ("images", "_void", "_saturated", "_images_used", "_image_sums")

    def __init__(
        self,
        protocol: Literal["pooled", "fishyscapes", "smiyc", "smiyc_uniform", "per_image"] | str = "pooled",
        precision: Literal["float32", "float16"] | str | None = "float32",
        *,
        max_distinct: int = 2**25,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
        if precision not in (*PRECISIONS, None):
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        if max_distinct < 1:
            raise ValueError(f"max_distinct must be at least 1, found {max_distinct}")
        self.protocol, self.precision, self.max_distinct = protocol, precision, int(max_distinct)
        self.images = self._void = self._saturated = 0
        self._store: FrameBins | HalfCounts | FloatCounts
        if protocol.startswith("smiyc"):
            self._store = FrameBins(uniform=protocol == "smiyc_uniform")
        else:
            self._store = HalfCounts() if precision == "float16" else FloatCounts(self.max_distinct)
        # AP, AUROC and FPR of the images that hold both kinds of pixels, as StreetHazards' and PAnS' code
        # averages them. The pooled counts stay: best F1 and the curves have no per-image definition.
        self._image_sums = np.zeros(len(_COLUMNS), np.int64)
        self._images_used = 0

    def update(self, score: Any, label: Any, name: str | None = None) -> None:
        """Count one image.

        Args:
            score: (H, W) floats or integers, higher = more anomalous; infinities are allowed.
            label: (H, W) integers or booleans: 0 known, 1 anomaly, 255 void.
            name: what to call the image in an error.

        Raises:
            ValueError: NaN among the scores, other labels, or shapes that differ. TypeError: not numbers.
                Nothing is counted then.
        """
        image = self._image(name)
        scores = as_scores(score, image)
        labels = np.asarray(label)
        check_same_shape(scores, labels, "score and label", image)
        known, anomalous, void = anomaly_masks(labels, image)
        saturated, smiyc = 0, isinstance(self._store, FrameBins)
        if self.precision is not None or smiyc:
            scores, saturated = to_precision(scores, self.precision or "float32")
        negative, positive = scores[known], scores[anomalous]
        if self.protocol == "per_image" and negative.size and positive.size:
            points = OperatingPoints(Runs.sorted(negative), Runs.from_scores(positive))
            row = [points.average_precision, points.auroc, *map(points.fpr, FPR_RULES.values())]
            self._image_sums += np.rint(np.multiply(row, _UNIT)).astype(np.int64)
            self._images_used += 1
        self._store.add(negative, positive)
        self.images += 1
        self._void += void
        self._saturated += saturated

    def _add(self, other: PixelMetrics) -> None:
        super()._add(other)
        self._store.merge(other._store)  # type: ignore[arg-type]  # of the same kind, as the settings are equal

    def _counted(self) -> State:
        return super()._counted() | self._store.state()

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self._store.load(state)

    def compute(self) -> dict[str, Any]:
        """The numbers of everything counted so far.

        Returns:
            Fractions ``AP``, ``AUROC``, ``FPR95``, ``best_f1``; ``best_f1_threshold`` in units of the score
            (the highest threshold with the best F1 when predicting score ≥ threshold). ``protocol`` and
            ``precision`` (the scores' own if they were not rounded). ``exact``: whether the numbers are the
            protocol's own for the rounded scores; where they are not, ``AP_interval``, ``AUROC_interval`` and
            ``FPR95_interval`` hold the true values (low, high), and ``best_f1`` is one that its threshold
            really reaches. Counts: ``images``, ``anomaly_pixels``, ``known_pixels``, ``void_pixels`` and, for
            ``per_image``, ``images_used``.
            ``note``: why a number is undefined (NaN, or by a convention), what was lost, or None.

            Under ``per_image`` AP, AUROC and FPR95 are means over images, best F1 is over all pixels.
        """
        points = OperatingPoints(*self._store.totals())
        per_image = self.protocol == "per_image"
        f1, threshold = points.best_f1()
        precision = self.precision or "float32"
        result: dict[str, Any] = {
            "AP": self._mean("AP") if per_image else points.average_precision,
            "AUROC": self._mean("AUROC") if per_image else points.auroc,
            "FPR95": self._mean("nearest") if per_image else points.fpr(FPR_RULES["first"]),
            "best_f1": f1,
            "best_f1_threshold": threshold,
            "protocol": self.protocol,
            "precision": self._store.dtype.name if isinstance(self._store, FloatCounts) else precision,
            "exact": True,
            "images": self.images,
            "anomaly_pixels": points.positives,
            "known_pixels": points.negatives,
            "void_pixels": self._void,
        }
        notes = [points.note()]
        if per_image:  # exact even where the pooled counts are binned
            result["images_used"] = self._images_used
            if not self._images_used:
                notes = ["no image holds both known and anomalous pixels: the means are 0 by convention"]
        elif isinstance(self._store, FloatCounts) and self._store.bins is not None:
            intervals = self._store.bins.intervals(FPR_RULES["first"].rate)
            result |= {"exact": False} | {f"{key}_interval": held for key, held in intervals.items()}
        if isinstance(self._store, FrameBins) and self._store.dropped:
            notes.append(f"{self._store.dropped} scores outside [-0.01, 1.01] count as the lowest")
        if self._saturated:
            notes.append(f"{self._saturated} scores beyond {precision} became infinite")
        result["note"] = "; ".join(note for note in notes if note) or None
        return result

    def _mean(self, column: str) -> float:
        """Mean over images as a fraction; 0 without any image to average, as in PAnS."""
        used = self._images_used
        return float(self._image_sums[_COLUMNS.index(column)] / _UNIT / used) if used else 0.0

    def fpr(self, rule: str) -> float:
        """False positive rate by another paper's rule, as a fraction.

        Args:
            rule: ``"first"`` (TPR ≥ 0.95), ``"nearest"`` (TPR nearest to 0.95), ``"rba"`` (TPR > 0.95) or
                ``"maskomaly"`` (TPR > 0.90). Under ``per_image`` it is applied to each image.
        """
        if rule not in FPR_RULES:
            raise ValueError(f"rule must be one of {', '.join(FPR_RULES)}, found {rule!r}")
        if self.protocol == "per_image":
            return self._mean(rule)
        return OperatingPoints(*self._store.totals()).fpr(FPR_RULES[rule])

    def curve(self, points: int = 1000) -> dict[str, np.ndarray]:
        """Points of the curves over all pixels; see :meth:`OperatingPoints.curve` for what they are."""
        return OperatingPoints(*self._store.totals()).curve(points)

    def histogram(self, bins: int = 100) -> dict[str, np.ndarray]:
        """Pixels per bin of the score; see :func:`score_histogram`. Under ``smiyc`` scores are known only by
        the bins of their frames, and counted at the lower edges.
        """
        return score_histogram(*self._store.totals(), bins, half=self.precision == "float16")
