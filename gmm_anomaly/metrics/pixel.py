"""Pixel metrics of an anomaly score under a named protocol, streaming over images."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from gmm_anomaly.metrics.base import (
    Metric,
    anomaly_masks,
    as_scores,
    check_same_shape,
    to_precision,
)
from gmm_anomaly.metrics.curves import FprRule, OperatingPoints, score_histogram
from gmm_anomaly.metrics.score_counts import UNIFORM_RANGE, ScoreCounts, smiyc_bins

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


def is_on_gpu(score: Any) -> bool:
    return bool(getattr(score, "is_cuda", False)) and score.is_floating_point()


def frame_average_precision(score: Any, label: Any) -> float:
    """AP over the valid pixels of one frame; NaN where it has no anomalous or no known pixel.

    Args:
        score: (H, W) float16, float32 or float64 without NaN, higher = more anomalous; an array, or a tensor.
        label: (H, W), 0 known, 1 anomaly, 255 void; likewise.
    """
    negative, positive = score[label == 0], score[label == 1]
    if not len(positive) or not len(negative):
        return math.nan
    count: Any = ScoreCounts.of
    if is_on_gpu(score):
        from gmm_anomaly.metrics.on_gpu import count_thresholds as count
    return OperatingPoints(count(negative, positive)).average_precision


class PixelMetrics(Metric):
    """AP, AUROC, FPR95 and best F1 of anomaly scores (higher = more anomalous).

    Everything that is added up is a whole number, so the result depends neither on the order of the images
    nor on how they were spread over batches, shards or processes.

    Args:
        protocol: ``"pooled"`` (default), ``"fishyscapes"``, ``"smiyc"``, ``"smiyc_uniform"`` or
            ``"per_image"``; :data:`PROTOCOLS` says what each is.
        precision: scores are rounded to it first, and equal scores are never ranked. ``"float16"`` needs 2 MB
            and is exact for scores stored as float16 (SegmentMeIfYouCan's files). ``"float32"`` is exact up
            to ``max_distinct`` different scores; beyond, AP, AUROC and FPR95 come with certified intervals (a
            relative resolution of 2⁻¹³; ties stay exact). None: as float32, but float64 scores and integers
            are ranked as they are but under ``fishyscapes`` and the ``smiyc`` protocols, whose code rounds.
        max_distinct: how many different scores are kept. At 20 bytes each (24 for float64) the default takes
            0.4 GB when full, and up to 2 GB for a moment when more are merged in.
    """

    SETTINGS = ("protocol", "precision", "max_distinct")
    COUNTS = ("images", "_void", "_saturated", "_outside", "_images_used", "_image_sums")

    def __init__(
        self,
        protocol: Literal["pooled", "fishyscapes", "smiyc", "smiyc_uniform", "per_image"] | str = "pooled",
        precision: Literal["float32", "float16"] | str | None = "float32",
        *,
        max_distinct: int = 2**24,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
        if precision not in (*PRECISIONS, None):
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        if max_distinct < 1:
            raise ValueError(f"max_distinct must be at least 1, found {max_distinct}")
        self.protocol, self.precision, self.max_distinct = protocol, precision, int(max_distinct)
        self._smiyc = protocol.startswith("smiyc")
        # Benchmarks' code that takes what it is given as float32.
        self._precision = precision or ("float32" if self._smiyc or protocol == "fishyscapes" else None)
        self.images = self._void = self._saturated = self._outside = 0
        # Scores of known pixels from the front, of anomalous ones from the back. One block for all frames: a
        # small one of each frame would stay among a network's temporaries, and leave holes in memory.
        self._waiting, self._used = np.empty(min(self.max_distinct, 2**25), np.float32), (0, 0)
        self._on_gpu: list[tuple[Any, Any]] = []  # likewise, of whole frames, where a GPU has them
        # Each less than half as long as the one before: few, and every row is merged a few times.
        self._parts = [ScoreCounts.of(*np.empty((2, 0), np.float32))]
        # AP, AUROC and FPR of the images that hold both kinds of pixels, as StreetHazards' and PAnS' code
        # averages them. The pooled counts stay: best F1 and the curves have no per-image definition.
        self._image_sums = np.zeros(len(_COLUMNS), np.int64)
        self._images_used = 0

    def update(self, score: Any, label: Any, name: str | None = None) -> None:
        """Count one image.

        Args:
            score: (H, W) floats or integers, higher = more anomalous; infinities are allowed. What is on a
                GPU is counted there.
            label: (H, W) integers or booleans: 0 known, 1 anomaly, 255 void.
            name: what to call the image in an error.

        Raises:
            ValueError: NaN among the scores, other labels, or shapes that differ. TypeError: not numbers.
                Nothing is counted then.
        """
        image = self._image(name)
        if is_on_gpu(score):
            void, saturated = self._count_on_gpu(score, label, image)
        else:
            scores = as_scores(score, image)
            labels = np.asarray(label)
            check_same_shape(scores, labels, "score and label", image)
            known, anomalous, void = anomaly_masks(labels, image)
            saturated = 0
            if precision := self._precision:
                scores, saturated = to_precision(scores, precision)
            negative, positive = scores[known], scores[anomalous]
            if scores.dtype == np.float16 or self._smiyc or self.protocol == "per_image":
                self._keep(self._counted_frame(ScoreCounts.of(negative, positive)))
            else:
                self._wait(negative, positive)
        self.images += 1
        self._void += void
        self._saturated += saturated

    def _count_on_gpu(self, score: Any, label: Any, image: str) -> tuple[int, int]:
        """The number of void pixels, and of scores that rounding made infinite."""
        from gmm_anomaly.metrics import on_gpu  # where there is no GPU, metrics need no torch

        negative, positive, void, saturated = on_gpu.split_scores(score, label, self._precision, image)
        if negative.itemsize == 2 or self._smiyc:
            self._keep(self._counted_frame(on_gpu.count_scores(negative, positive)))
            return void, saturated
        if self.protocol == "per_image":
            self._counted_frame(on_gpu.count_thresholds(negative, positive))
        self._on_gpu.append((negative, positive))
        if sum(len(side) for frame in self._on_gpu for side in frame) > len(self._waiting):
            self._collect()
        return void, saturated

    def _counted_frame(self, frame: ScoreCounts) -> ScoreCounts:
        """What the protocol counts of one frame; under ``per_image`` its own numbers are added up."""
        if self.protocol == "per_image" and frame.known.any() and frame.anomalous.any():
            points = OperatingPoints(frame)
            row = [points.average_precision, points.auroc, *map(points.fpr, FPR_RULES.values())]
            self._image_sums += np.rint(np.multiply(row, _UNIT)).astype(np.int64)
            self._images_used += 1
        if not self._smiyc:
            return frame
        binned = smiyc_bins(frame, uniform=self.protocol == "smiyc_uniform")
        if self.protocol == "smiyc_uniform":
            below = binned.low < UNIFORM_RANGE[0]
            self._outside += int(binned.known[below].sum() + binned.anomalous[below].sum())
        return binned

    def _wait(self, negative: np.ndarray, positive: np.ndarray) -> None:
        """Sorting the pixels of many frames at once takes a quarter of the time of merging sorted frames."""
        pixels = negative.size + positive.size
        widened = negative.dtype.itemsize > self._waiting.dtype.itemsize
        if widened or sum(self._used) + pixels > len(self._waiting):
            self._collect()
        if widened:
            self._waiting = np.empty(len(self._waiting), negative.dtype)
        if pixels > len(self._waiting):
            self._keep(ScoreCounts.of(negative, positive))
            return
        front, back = self._used
        self._used = front + negative.size, back + positive.size
        self._waiting[front : self._used[0]] = negative
        self._waiting[len(self._waiting) - self._used[1] : len(self._waiting) - back] = positive

    def _collect(self) -> None:
        front, back = self._used
        self._used = 0, 0
        self._keep(ScoreCounts.of(self._waiting[:front], self._waiting[len(self._waiting) - back :]))
        if self._on_gpu:
            from gmm_anomaly.metrics import on_gpu

            frames, self._on_gpu = self._on_gpu, []
            binned = any(part.binned for part in self._parts)
            self._keep(on_gpu.count_frames(frames, self.max_distinct, binned=binned))

    def _keep(self, counts: ScoreCounts) -> None:
        self._parts.append(counts)
        while len(self._parts) > 1 and len(self._parts[-2]) <= 2 * len(self._parts[-1]):
            self._parts[-2:] = [ScoreCounts.merged(self._parts[-2:], self.max_distinct)]

    def counts(self) -> ScoreCounts:
        """The scores counted so far, with their known and anomalous pixels."""
        self._collect()
        if len(self._parts) > 1:
            self._parts = [ScoreCounts.merged(self._parts, self.max_distinct)]
        return self._parts[0]

    def _add(self, other: PixelMetrics) -> None:
        super()._add(other)
        self._keep(other.counts())

    def __getstate__(self) -> dict[str, Any]:
        # The block for scores that wait for company stays here.
        self._collect()
        return vars(self) | {"_waiting": self._waiting[:0].copy()}

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
        counts = self.counts()
        points = OperatingPoints(counts)
        per_image = self.protocol == "per_image"
        f1, threshold = points.best_f1()
        precision = self._precision or counts.low.dtype.name
        result: dict[str, Any] = {
            "AP": self._mean("AP") if per_image else points.average_precision,
            "AUROC": self._mean("AUROC") if per_image else points.auroc,
            "FPR95": self._mean("nearest") if per_image else points.fpr(FPR_RULES["first"]),
            "best_f1": f1,
            "best_f1_threshold": threshold,
            "protocol": self.protocol,
            "precision": precision,
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
        elif (counts.low != counts.high).any():  # bins of one score are ties
            intervals = counts.intervals(FPR_RULES["first"].rate)
            result |= {"exact": False} | {f"{key}_interval": held for key, held in intervals.items()}
        if self._outside:
            notes.append(f"{self._outside} scores outside [-0.01, 1.01] count as the lowest")
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
        return OperatingPoints(self.counts()).fpr(FPR_RULES[rule])

    def curve(self, points: int = 1000) -> dict[str, np.ndarray]:
        """Points of the curves over all pixels; see :meth:`OperatingPoints.curve` for what they are."""
        return OperatingPoints(self.counts()).curve(points)

    def histogram(self, bins: int = 100) -> dict[str, np.ndarray]:
        """Pixels per bin of the score; see :func:`score_histogram`. Under ``smiyc`` scores are known only by
        the bins of their frames, and counted at the lower edges.
        """
        return score_histogram(self.counts(), bins, half=self.precision == "float16")
