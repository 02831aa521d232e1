"""Evaluation of anomaly scores: pixel metrics of several scores in one pass, component metrics after it.

For reports ``output_dir/curves/<data set>.json`` is written, in one line of strict JSON:
{"dataset", "protocol", "track", "scores": {score: {"AP", "AUROC", "curve": {"recall",
"precision", "fpr"}, "histogram": {"edges", "known", "anomalous", "known_outside", "anomalous_outside"},
"components_by_size": [...]}}, "frames": {"score", "AP": {image id: AP or null}, "drawn": [image id, ...],
"steps": {"threshold", "recall", "fpr"}}}
The rows of ``curve`` are points of the protocol's own pooled curve; the true positive rate is the recall.
``steps`` are at most 255 of them, ascending; ``curves/<data set>/<image id>.png`` of a frame that is drawn
says how many of them each pixel reaches.
``AP`` and ``AUROC`` tell whether the file belongs to the ``results.json`` beside it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmm_anomaly.metrics import ComponentMetrics, PixelMetrics
from gmm_anomaly.metrics.base import to_precision
from gmm_anomaly.metrics.pixel import frame_average_precision, is_on_gpu

from . import files
from .files import KeptScores, range_sample, save_array, save_json, shared_range
from .records import RecordEvaluator
from .results import ANOMALY, COMPONENTS, TaskResult, component_task, pixel_task

logger = logging.getLogger(__name__)

POINTS, BINS, STEPS = 400, 80, 255  # of the curves, the histograms and the slider of reports


class AnomalyEvaluator(RecordEvaluator):
    """Metrics of one or more anomaly scores on one data set.

    Component metrics need the threshold of the best F1 over the whole data set, so score maps are kept (in
    a temporary folder under ``output_dir``) until it is known; the model runs once.

    ``process`` takes outputs with ``anomaly_scores`` {name: (H, W) float tensor or array, higher = more
    anomalous}, of the size of the image's label.

    Args:
        dataset_name: a registered data set with ``evaluator_type`` "anomaly" and labels.
        scores: names of the scores; those of ``outputs[i]["anomaly_scores"]`` that are evaluated. The first
            one is drawn.
        protocol: rule of the pixel metrics (``gmm_anomaly.metrics.PROTOCOLS``); None: the data set's own.
        component_track: ``"anomaly"`` or ``"obstacle"`` for the component metrics of SegmentMeIfYouCan with
            the sizes of that track, ``"none"`` for none; None: the data set's own.
        precision: what scores are rounded to before anything is counted, ``"float16"`` or ``"float32"``.
            None: as the benchmark's code, float16 under the ``smiyc`` protocols and float32 under
            ``fishyscapes``; under the others scores are ranked as they are.
        distributed: merge over the ranks.
        output_dir: folder for score maps, overlays and what reports draw.
        save_scores: write every map to ``output_dir/scores/<data set>/<score>/<image id>.npy`` (float16).
        num_visualizations: overlays of the first so many images of the data set, in
            ``output_dir/visualizations/<data set>/<image id>.png``.
        num_best_worst: overlays of so many images where the first score's AP is highest, and of as many
            where it is lowest, in the same folder.

    Raises:
        ValueError: unknown names, a data set whose labels are withheld, or files wanted without
            ``output_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        scores: Sequence[str],
        *,
        protocol: str | None = None,
        component_track: str | None = None,
        precision: str | None = None,
        distributed: bool = True,
        output_dir: str | Path | None = None,
        save_scores: bool = False,
        num_visualizations: int = 0,
        num_best_worst: int = 0,
    ) -> None:
        if isinstance(scores, str) or not scores:
            raise ValueError(f"scores must be a list of at least one score's name, found {scores!r}")
        if output_dir is None and (save_scores or num_visualizations or num_best_worst):
            raise ValueError("save_scores, num_visualizations and num_best_worst need output_dir")
        super().__init__(dataset_name, "anomaly", distributed, output_dir, num_visualizations)
        metadata = self.records.metadata
        track = component_track or metadata.get("component_track") or "none"
        if track not in ("anomaly", "obstacle", "none"):
            raise ValueError(f"component_track: expected 'anomaly', 'obstacle' or 'none', found {track!r}")
        self.track = None if track == "none" else track
        self.protocol = protocol or metadata.get("protocol") or "pooled"
        self.smiyc = self.protocol.startswith("smiyc")
        by_rule = "float16" if self.smiyc else "float32" if self.protocol == "fishyscapes" else None
        self.precision = precision or by_rule
        self.scores, self.save_scores = list(scores), save_scores
        self._num_best_worst = num_best_worst
        self._kept = KeptScores(output_dir)
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._pixels = {name: PixelMetrics(self.protocol, self.precision) for name in self.scores}
        # AP of each frame by the first score, which says what is drawn.
        self._average_precision: dict[int, float] = {}
        self._kept.clear()

    def _count(self, index: int, output: Mapping[str, Any], where: str) -> None:
        label = self.records.label(index)
        uploaded = cache(partial(torch.as_tensor, label))
        image_id = self.records.image_id(index)
        for name in self.scores:
            score = _score_map(output, name, label.shape, where)
            there = uploaded(device=score.device) if isinstance(score, torch.Tensor) else label
            try:
                self._pixels[name].update(score, there, image_id)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.records.name}, score {name!r}: {error}") from error
            # As the pixel metrics rank them.
            rounded = _rounded(score, self.precision)
            drawn = False
            if name == self.scores[0] and self.output_dir is not None:
                self._average_precision[index] = frame_average_precision(rounded, there)
                drawn = index in self._to_draw(self._average_precision)
            if self.track is not None or drawn:
                self._kept.put((index, name), _array(rounded))
            if self.save_scores:
                assert self.output_dir is not None
                folder = self.output_dir / "scores" / self.records.name / name
                save_array(folder / f"{image_id}.npy", _array(_rounded(score, "float16")))
        if self.track is None:
            wanted = self._to_draw(self._average_precision)
            for key in self._kept.keys():
                if key[0] not in wanted:
                    self._kept.drop(key)

    def _to_draw(self, average_precision: Mapping[int, float]) -> set[int]:
        """The frames to draw of those whose AP is given."""
        ranked = sorted((found, index) for index, found in average_precision.items() if not math.isnan(found))
        count = min(self._num_best_worst, len(ranked))
        extreme = [*ranked[:count], *ranked[len(ranked) - count :]]
        return {index for _, index in extreme} | (set(self._drawn) & average_precision.keys())

    def evaluate(self) -> dict[str, TaskResult] | None:
        """Results of everything processed since the last ``reset``; collective, every rank must call.

        Returns:
            On rank 0 {``"anomaly/<protocol>/<score>"``: ``AP``, ``AUROC``, ``FPR95``, ``best_f1``,
            ``best_f1_threshold``, ``images``; ``"components/<track>_track/<score>"``: ``sIoU_gt``, ``PPV``,
            ``F1``, ``threshold``}, all fractions but for thresholds and counts; None on the other ranks.
            Where a float32 number is not exact, ``<metric>_low`` and ``<metric>_high`` enclose it.

        Raises:
            ValueError: no image was processed, or one by several ranks.
        """
        try:
            self._check_coverage()
            results: dict[str, TaskResult] = {}
            curves: dict[str, dict[str, Any]] = {}
            steps: dict[str, np.ndarray] = {}
            for name in self.scores:
                merged = self._merged(self._pixels[name])
                if merged is not None:
                    computed = merged.compute()
                    results[f"{ANOMALY}/{self.protocol}/{name}"] = pixel_task(computed)
                    if self.output_dir is not None:
                        curve = merged.curve(POINTS)
                        # Nothing is predicted at the first one.
                        rows = np.arange(len(curve["recall"]) - 1, 0, -1)
                        rows = rows[:: -(-len(rows) // STEPS) or 1]
                        steps = steps or {key: curve[key][rows] for key in ("threshold", "recall", "fpr")}
                        curves[name] = {
                            "AP": computed["AP"],
                            "AUROC": computed["AUROC"],
                            "curve": {key: curve[key] for key in ("recall", "precision", "fpr")},
                            "histogram": merged.histogram(BINS),
                        }
            thresholds = self._share([result["best_f1_threshold"] for result in results.values()])[0]
            if self.track is not None:
                at = dict(zip(self.scores, thresholds, strict=True))
                results |= self._components(self.track, at, curves)
            if self.output_dir is not None:
                self._report(curves, steps, self.output_dir)
        finally:
            self._kept.clear()
        if not self.is_main:
            return None
        for task, result in results.items():
            if result.details.get("note"):
                logger.warning("%s, %s: %s", self.records.name, task, result.details["note"])
        return results

    def _components(
        self, track: str, thresholds: Mapping[str, float], curves: Mapping[str, dict[str, Any]]
    ) -> dict[str, TaskResult]:
        """Component metrics of this rank's frames at the data set's thresholds, merged on rank 0.

        Where there are ``curves`` of a score, its components by size are added to them.
        """
        make: Any = getattr(ComponentMetrics, f"{track}_track")
        above = "score > threshold" if self.smiyc else "score >= threshold"
        # Without one valid pixel there is no threshold, and nothing to compare.
        metrics = {
            name: make(0.0 if math.isnan(at) else at, inclusive=not self.smiyc)
            for name, at in thresholds.items()
        }
        for index in sorted(self._seen):
            label = self.records.label(index)
            for name, metric in metrics.items():
                metric.update(self._kept.get((index, name)), label, self.records.image_id(index))
        results = {}
        for name, metric in metrics.items():
            merged = self._merged(metric)
            if merged is not None:
                if name in curves:
                    curves[name]["components_by_size"] = merged.by_size()
                computed = merged.compute()
                computed |= {"threshold_from": f"best F1, {self.protocol}", "predicted": above}
                if self.smiyc and not computed["predictions"]:
                    computed["note"] += f"; predicted is {above}, as in the benchmark's code"
                results[f"{COMPONENTS}/{track}_track/{name}"] = component_task(computed, track)
        return results

    def _report(
        self, curves: Mapping[str, dict[str, Any]], steps: Mapping[str, np.ndarray], output_dir: Path
    ) -> None:
        """Draw this rank's part of the overlays, all ranks' in one colour range, and on rank 0 write what a
        report needs."""
        shards = self._share(self._average_precision)
        average_precision = dict(sorted(item for shard in shards for item in shard.items()))
        drawn = self._to_draw(average_precision)
        mine = {index: self._kept.get((index, self.scores[0])) for index in sorted(drawn & self._seen)}
        samples = self._share([range_sample(score) for score in mine.values()])
        colors = shared_range([sample for shard in samples for sample in shard])
        thresholds = self._share(steps.get("threshold"))[0]
        for index, score in mine.items():
            files.anomaly_overlay(self.records, index, score, self.scores[0], colors, output_dir)
            files.save_levels(self.records, index, score, thresholds, output_dir)
        if self.is_main:
            name, ids = self.records.name, self.records.image_id
            document = {
                "dataset": name,
                "protocol": self.protocol,
                "track": self.track,
                "scores": curves,
                "frames": {
                    "score": self.scores[0],
                    "AP": {ids(index): found for index, found in average_precision.items()},
                    "drawn": [ids(index) for index in sorted(drawn)],
                    "steps": steps,
                },
            }
            save_json(output_dir / "curves" / f"{name}.json", document, digits=7)


def _rounded(score: Any, precision: str | None) -> Any:
    """An array or a tensor in "float16" or "float32"; None: as it is, integers as the smallest floats."""
    if isinstance(score, torch.Tensor):
        return score.to(getattr(torch, precision)) if precision else score
    return to_precision(score, precision or str(np.result_type(score, np.float16)))[0]


def _array(score: Any) -> np.ndarray:
    return score.cpu().numpy() if isinstance(score, torch.Tensor) else score


def _score_map(output: Mapping[str, Any], name: str, shape: tuple[int, ...], where: str) -> Any:
    """One score map of a model's output, of the label's size: a tensor if it is on a GPU, else an array."""
    maps = output.get("anomaly_scores", {})
    if name not in maps:
        raise ValueError(
            f"{where}: the model's output has no score {name!r}, only {', '.join(sorted(maps)) or 'none'}; "
            'it must give "anomaly_scores" {name: (H, W)}'
        )
    score = maps[name]
    if isinstance(score, torch.Tensor):  # numpy has no bfloat16
        score = (score.float() if score.dtype == torch.bfloat16 else score).detach()
    score = score if is_on_gpu(score) else np.asarray(_array(score))
    if score.shape != shape:
        found, wanted = (" x ".join(map(str, size)) for size in (score.shape, shape))
        raise ValueError(
            f"{where}: score {name!r} has the size {found} (height x width), the label {wanted}; scores must "
            "be restored to the label's size (height and width of the input)"
        )
    return score
