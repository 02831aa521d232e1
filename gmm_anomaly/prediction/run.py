"""One call of `gmm-anomaly predict`: inputs, model, threshold, files, summary."""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from gmm_anomaly.engine.weights import trust_pickles
from gmm_anomaly.predictor import AnomalyPredictor
from gmm_anomaly.visualization import robust_range

from .arguments import DEFAULT_FPR
from .inputs import as_rgb
from .outputs import PredictionWriter
from .results import Prediction
from .sources import Source, list_sources
from .threshold import Threshold
from .video import VideoReader, write_video
from .webcam import frame_rate, open_camera, require_display, watch


class Run:
    """One call of the command.

    Attributes:
        skipped: inputs that could not be read, and why.
    """

    def __init__(self, args: argparse.Namespace, predictor: AnomalyPredictor) -> None:
        self.args = args
        self.predictor = predictor
        self.writer = PredictionWriter(args.out, args.save_score)
        self.color_range = tuple(args.range) if args.range else predictor.color_range
        self.skipped: list[dict[str, str]] = []

    def images(self, sources: Sequence[Source]) -> list[dict[str, Any]]:
        """Predict images and write their files; returns what was found in each."""
        found = []
        read: deque[Source] = deque()
        with _bar(len(sources), "images") as bar:

            def readable() -> Iterator[np.ndarray]:
                for source in sources:
                    try:
                        image = as_rgb(source.path)
                    except (ValueError, OSError) as error:
                        self.skip(source, error)
                        bar.update()
                        continue
                    read.append(source)
                    yield image

            for prediction in self.compared(
                self.predictor.stream(readable(), batch_size=self.args.batch_size)
            ):
                source = read.popleft()
                prediction = replace(prediction, source=str(source.path))
                found.append({"input": str(source.path)} | self.writer.write(source.name, prediction))
                bar.update()
        return found

    def video(self, source: Source) -> dict[str, Any] | None:
        """Predict a video and write its files; None if it cannot be read."""
        try:
            reader = VideoReader(source.path)
        except ValueError as error:
            self.skip(source, error)
            return None
        with reader, _bar(reader.frames, source.name) as bar:
            predictions = self.predictor.stream(reader, format="BGR", batch_size=self.args.batch_size)

            def counted() -> Iterator[Prediction]:
                for index, prediction in enumerate(self.compared(predictions)):
                    if self.args.save_score:
                        self.writer.write_score(f"{source.name}_{index:06d}", prediction.score)
                    yield prediction
                    bar.update()

            written = write_video(self.args.out, source.name, reader.fps, counted())
        return {"input": str(source.path)} | written

    def camera(self, number: int) -> dict[str, Any]:
        """Predict a camera until q is pressed; recorded if there is a folder to write into."""
        require_display()
        predict = partial(self.predictor, format="BGR")

        def comparable(frame: np.ndarray) -> Prediction:
            return next(self.compared([predict(frame)]))

        with open_camera(number) as capture:
            fps = frame_rate(capture, comparable)
            predictions = watch(capture, comparable)
            if self.args.out is None:
                return {"input": f"camera {number}", "frames": sum(1 for _ in predictions)}
            return {"input": f"camera {number}"} | write_video(
                self.args.out, f"webcam{number}", fps, predictions
            )

    def compared(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The predictions, all in one colour range: that of the first one of this run if none is given."""
        for prediction in predictions:
            if self.color_range is None:
                self.color_range = robust_range(prediction.score)
            yield replace(prediction, color_range=self.color_range)

    def skip(self, source: Source, error: Exception) -> None:
        self.skipped.append({"input": str(source.path), "error": str(error)})
        tqdm.write(f"skipped: {error}", file=sys.stderr)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the arguments say; returns the summary as plain values."""
    start = time.perf_counter()
    trust_pickles(args.trust_pickle)
    for path in args.register:
        runpy.run_path(path)
    # Before a model is built: what is not there is said at once.
    sources = list_sources(args.inputs)
    predictor = AnomalyPredictor.from_config(
        args.config, args.weights, score=args.score, device=args.device, half=args.half,
        min_area=args.min_area, opts=args.opts,
    )  # fmt: skip
    threshold = _threshold(args, predictor)
    job = Run(args, predictor)
    videos = [job.video(source) for source in sources if source.is_video]
    images = job.images([source for source in sources if not source.is_video])
    if args.webcam is not None:
        videos.append(job.camera(args.webcam))
    return {
        "config": str(args.config),
        "weights": args.weights,
        "score": predictor.score,
        "device": str(predictor.device),
        "half": args.half,
        "threshold": threshold,
        "color_range": job.color_range,
        "images": images,
        "videos": [video for video in videos if video is not None],
        "skipped": job.skipped,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _threshold(args: argparse.Namespace, predictor: AnomalyPredictor) -> dict[str, Any] | None:
    """Give the predictor its threshold; returns what is known about it."""
    if args.threshold is not None:
        predictor.use_threshold(args.threshold)
        return {"value": args.threshold}
    if args.threshold_file:
        found = Threshold.load(args.threshold_file)
        predictor.use_threshold(found)
        return asdict(found) | {"file": str(args.threshold_file)}
    if not args.calibrate_on:
        return None
    target = DEFAULT_FPR if args.target_fpr is None else args.target_fpr
    progress = partial(_bar_of, f"calibrating on {args.calibrate_on}")
    found = predictor.calibrate(args.calibrate_on, target, progress=progress)
    file = args.out / "threshold.json"
    found.save(file)
    return asdict(found) | {"file": str(file)}


def _bar(total: int | None, what: str) -> tqdm:
    # In a log file a line now and then, on a terminal a bar that moves.
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=what, mininterval=interval, file=sys.stderr, disable=total == 0)


def _bar_of(what: str, indices: Sequence[int]) -> Iterator[int]:
    with _bar(len(indices), what) as bar:
        for index in indices:
            yield index
            bar.update()


def report(summary: dict[str, Any], args: argparse.Namespace) -> str:
    """The summary for a person."""
    lines = []
    threshold = summary["threshold"]
    if threshold and "dataset" in threshold:
        lines.append(
            f"threshold {threshold['value']:.6g} on {threshold['score']}: above it lie "
            f"{100 * threshold['measured_fpr']:.3g} % of the {threshold['known_pixels']} known pixels of "
            f"{threshold['dataset']} ({threshold['file']})"
        )
    if summary["images"]:
        anomalies = [image["anomalies"] for image in summary["images"]]
        found = "" if threshold is None else f", {sum(map(bool, anomalies))} with anomalies"
        lines.append(f"{len(anomalies)} images{found}: {args.out}")
    for video in summary["videos"]:
        counted = video.get("frames_with_anomalies")
        found = "" if counted is None else f", {counted} with anomalies"
        target = f": {video['overlay']}" if "overlay" in video else ""
        lines.append(f"{video['input']}, {video['frames']} frames{found}{target}")
    if threshold is None:
        lines.append("heat maps only: --calibrate-on, --threshold-file or --threshold mark anomalies")
    if summary["skipped"]:
        lines.append(f"{len(summary['skipped'])} inputs could not be read and were skipped:")
        lines += [f"  {skipped['error']}" for skipped in summary["skipped"]]
    return "\n".join(lines)
