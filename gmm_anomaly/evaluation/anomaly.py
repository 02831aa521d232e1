"""Evaluation of anomaly scores: pixel metrics of several scores in one pass, component metrics after it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator

from gmm_anomaly.metrics import ComponentMetrics, PixelMetrics
from gmm_anomaly.metrics.component_sizes import ComponentSizes, anomaly_sizes

from .curves import pixel_curves, write_curves
from .files import save_array
from .frame_scores import FrameScores, frame_average_precision
from .kept_scores import KeptScores
from .overlays import anomaly_overlay, range_sample, shared_range
from .records import EvaluatedRecords
from .shards import Shards
from .task_result import ANOMALY, COMPONENTS, TaskResult, component_task, pixel_task, task_name

logger = logging.getLogger(__name__)

COMPONENT_TRACKS = {
    "anomaly": ComponentMetrics.anomaly_track,
    "obstacle": ComponentMetrics.obstacle_track,
}


def check_component_track(track: str) -> None:
    """Raise ValueError for a value that the key ``TEST.COMPONENT_TRACK`` cannot have."""
    if track not in ("", "none", *COMPONENT_TRACKS):
        raise ValueError(f"TEST.COMPONENT_TRACK: {_expected_track(track)}")


def _expected_track(found: str) -> str:
    return f"expected {', '.join(map(repr, COMPONENT_TRACKS))} or 'none', found {found!r}"


class AnomalyEvaluator(DatasetEvaluator):
    """Metrics of one or more anomaly scores on one data set.

    Component metrics need the threshold of the best F1 over the whole data set, so score maps are kept (in
    memory, beyond 2 GiB in a temporary folder under ``output_dir``) until it is known; the model runs once.

    Over several ranks each evaluates its own images; whole-number counts are gathered, so the results are
    those of one process to the last bit.

    Args:
        dataset_name: a registered data set with ``evaluator_type`` "anomaly" and labels.
        scores: names of the scores; those of ``outputs[i]["anomaly_scores"]`` that are evaluated. The first
            one is drawn.
        protocol: rule of the pixel metrics (``gmm_anomaly.metrics.PROTOCOLS``); None: the data set's own.
        component_track: ``"anomaly"`` or ``"obstacle"`` for the component metrics of SegmentMeIfYouCan with
            the sizes of that track, ``"none"`` for none; None: the data set's own.
        precision: what scores are rounded to before anything is counted, ``"float16"`` or ``"float32"``.
            None: float16 under the ``smiyc`` protocols and with component metrics, because that is what the
            benchmark stores; else float32.
        distributed: merge over the ranks.
        output_dir: folder for score maps and overlays, and for what reports draw: ``curves/<data set>.json``
            (see :mod:`.curves`).
        save_scores: write every map to ``output_dir/scores/<data set>/<score>/<image id>.npy`` (float16).
        num_visualizations: overlays of the first so many images of the data set, in
            ``output_dir/visualizations/<data set>/<image id>.png``.
        num_best_worst: overlays of so many images where the first score's AP is highest, and of as many
            where it is lowest, in the same folder.
        memory_budget: bytes of kept score maps in memory, per rank.

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
        memory_budget: int = 2 * 2**30,
    ) -> None:
        if isinstance(scores, str) or not scores:
            raise ValueError(f"scores must be a list of at least one score's name, found {scores!r}")
        if output_dir is None and (save_scores or num_visualizations or num_best_worst):
            raise ValueError("save_scores, num_visualizations and num_best_worst need output_dir")
        self.records = EvaluatedRecords(dataset_name, "anomaly")
        metadata = self.records.metadata
        track = component_track or metadata.get("component_track") or "none"
        if track not in ("none", *COMPONENT_TRACKS):
            raise ValueError(f"component_track: {_expected_track(track)}")
        self.scores = list(scores)
        self.track = None if track == "none" else track
        self.protocol = protocol or metadata.get("protocol") or "pooled"
        stored_as_half = self.track is not None or self.protocol.startswith("smiyc")
        self.precision = precision or ("float16" if stored_as_half else "float32")
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.save_scores = save_scores
        self._drawn = range(min(num_visualizations, len(self.records)))
        self._num_best_worst = num_best_worst
        self._shards = Shards(distributed)
        self._kept = KeptScores(memory_budget, output_dir)
        self.reset()

    def reset(self) -> None:
        self._pixels = {name: PixelMetrics(self.protocol, self.precision) for name in self.scores}
        self._seen: set[int] = set()
        self._frames = FrameScores(self._num_best_worst)
        self._kept.clear()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``anomaly_scores`` {name: (H, W) float tensor or array, higher = more
                anomalous}, of the size of the image's label.

        Raises:
            ValueError: an image that is not in the data set or was given before, a score that is missing,
                NaN, or of another size than the label.
        """
        for item, output in zip(inputs, outputs, strict=True):
            index = self.records.find(item)
            where = f"{self.records.name}, image {self.records.image_id(index)!r}"
            if index in self._seen:
                raise ValueError(f"{where} was given twice; call reset() before another round")
            label = self.records.label(index)
            for name in self.scores:
                score = _score_map(output, name, label.shape, where)
                try:
                    self._pixels[name].update(score, label, self.records.image_id(index))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{self.records.name}, score {name!r}: {error}") from error
                rounded = _rounded(score, self.precision)
                dropped = self._rank(index, rounded, label) if name == self.scores[0] else set()
                self._keep(index, name, score, rounded)
                for frame in dropped:
                    self._kept.drop((frame, name))
            self._seen.add(index)

    def _rank(self, index: int, score: np.ndarray, label: np.ndarray) -> set[int]:
        """Note the AP of a frame; returns the frames whose maps nobody will draw any more."""
        if self.output_dir is None:
            return set()
        dropped = self._frames.add(index, frame_average_precision(score, label))
        return set() if self.track is not None else dropped - {index, *self._drawn}

    def _keep(self, index: int, name: str, score: np.ndarray, rounded: np.ndarray) -> None:
        drawn = name == self.scores[0] and (index in self._drawn or index in self._frames.extreme)
        if self.track is not None or drawn:
            self._kept.put((index, name), rounded)
        if self.save_scores:
            assert self.output_dir is not None
            folder = self.output_dir / "scores" / self.records.name / name
            save_array(folder / f"{self.records.image_id(index)}.npy", _rounded(score, "float16"))

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
            self._shards.check_coverage(self._seen, self.records)
            results: dict[str, TaskResult] = {}
            curves: dict[str, dict[str, Any]] = {}
            for name in self.scores:
                merged = self._shards.merged(self._pixels[name])
                if merged is not None:
                    computed = merged.compute()
                    results[task_name(ANOMALY, self.protocol, name)] = pixel_task(computed)
                    if self.output_dir is not None:
                        curves[name] = pixel_curves(merged, computed)
            thresholds = self._shards.from_main([result["best_f1_threshold"] for result in results.values()])
            if self.track is not None:
                results |= self._components(dict(zip(self.scores, thresholds, strict=True)), curves)
            if self.output_dir is not None:
                self._report(curves)
        finally:
            self._kept.clear()
        if not self._shards.is_main:
            return None
        for task, result in results.items():
            if result.details.get("note"):
                logger.warning("%s, %s: %s", self.records.name, task, result.details["note"])
        return results

    def _components(
        self, thresholds: Mapping[str, float], curves: Mapping[str, dict[str, Any]]
    ) -> dict[str, TaskResult]:
        """Component metrics of this rank's frames at the data set's thresholds, merged on rank 0.

        Where there are ``curves`` of a score, its components by size are added to them.
        """
        make = COMPONENT_TRACKS[self.track or ""]
        # Without one valid pixel there is no threshold, and nothing to compare.
        metrics = {name: make(0.0 if math.isnan(at) else at) for name, at in thresholds.items()}
        by_size = {name: ComponentSizes() for name in thresholds}
        for index in sorted(self._seen):
            label = self.records.label(index)
            sizes = anomaly_sizes(label, make(0.0).min_anomaly_size)
            for name, metric in metrics.items():
                found = metric.update(self._kept.get((index, name)), label, self.records.image_id(index))
                by_size[name].update(found, sizes)
        results = {}
        for name, metric in metrics.items():
            merged, merged_sizes = self._shards.merged(metric), self._shards.merged(by_size[name])
            if merged is not None and merged_sizes is not None:
                if name in curves:
                    curves[name]["components_by_size"] = merged_sizes.compute()
                task = task_name(COMPONENTS, f"{self.track}_track", name)
                details = {"threshold_from": f"best F1, {self.protocol}"}
                results[task] = component_task(merged.compute() | details, str(self.track))
        return results

    def _report(self, curves: Mapping[str, dict[str, Any]]) -> None:
        """Draw overlays, and write what a report needs of all ranks on rank 0."""
        assert self.output_dir is not None
        frames = FrameScores.joined(self._shards.share(self._frames.found), self._num_best_worst)
        drawn = frames.extreme | (set(self._drawn) & frames.found.keys())
        self._draw(drawn, self.output_dir)
        if not self._shards.is_main:
            return
        ids = self.records.image_id
        document = {
            "dataset": self.records.name,
            "protocol": self.protocol,
            "precision": self.precision,
            "track": self.track,
            "scores": curves,
            "frames": {
                "score": self.scores[0],
                "AP": {ids(index): found for index, found in frames.found.items()},
                "drawn": [ids(index) for index in sorted(drawn)],
            },
        }
        write_curves(self.output_dir, document)

    def _draw(self, drawn: set[int], output_dir: Path) -> None:
        """Overlays of this rank's part of the frames, all ranks' in one colour range."""
        name = self.scores[0]
        mine = sorted(drawn & self._seen)
        samples = [range_sample(self._kept.get((index, name))) for index in mine]
        colors = shared_range([sample for shard in self._shards.share(samples) for sample in shard])
        for index in mine:
            score = self._kept.get((index, name))
            anomaly_overlay(self.records, index, score, name, colors, output_dir)


def _score_map(output: Mapping[str, Any], name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """One score map of a model's output as float32 on the CPU, of the label's size."""
    maps = output.get("anomaly_scores", {})
    if name not in maps:
        raise ValueError(
            f"{where}: the model's output has no score {name!r}, only {', '.join(sorted(maps)) or 'none'}; "
            'it must give "anomaly_scores" {name: (H, W)}'
        )
    score = torch.as_tensor(maps[name]).detach().float().cpu().numpy()
    if score.shape != shape:
        raise ValueError(
            f"{where}: score {name!r} has the size {_size(score.shape)} (height x width), the label "
            f"{_size(shape)}; scores must be restored to the label's size (height and width of the input)"
        )
    return score


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _rounded(score: np.ndarray, dtype: str) -> np.ndarray:
    """Values beyond the type's range become infinite, as the pixel metrics round (and note) them."""
    with np.errstate(over="ignore"):
        return score.astype(dtype)
