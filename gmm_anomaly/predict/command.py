"""The command `gmm-anomaly predict`: inputs, model, threshold, files (docs/predict.md lists them), summary.
Every file appears whole, under its final name, or not at all.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from gmm_anomaly.compat import keep_freed_memory
from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.evaluation.files import json_text, save_array, save_json, save_picture
from gmm_anomaly.visualization import robust_range

from .inputs import VideoReader, as_rgb, is_video, list_sources
from .predictor import AnomalyPredictor
from .result import MIN_AREA, Prediction, extremes, save_score_png, write_video

# What lies in --out.
FOLDERS = ("overlays", "segmentation", "scores", "components", "videos")
# In a log file a line now and then, on a terminal a bar that moves.
_bar = partial(tqdm, file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 30)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say (see ``gmm_anomaly.verbs``), and print a summary.

    Returns:
        Exit status: 1 if an input could not be read, or not wholly, else 0.

    Raises:
        argparse.ArgumentError: arguments that contradict each other.
    """
    rate = args.target_fpr
    for wrong, message in (
        (not (args.inputs or args.threshold_on), "nothing to predict: give images, videos or folders"),
        (rate is not None and not args.threshold_on, "--target-fpr needs a data set: --threshold-on DATASET"),
        (rate is not None and not 0 < rate < 1, "--target-fpr: expected a share between 0 and 1"),
        (args.min_area is not None and args.min_area < 0, "--min-area: expected 0 or more"),
        (args.range and not args.range[0] < args.range[1], "--range: LOW must be below HIGH"),
    ):
        if wrong:
            raise argparse.ArgumentError(None, message)
    keep_freed_memory()
    # Before a model is built: what is not there is said at once.
    sources = list_sources(args.inputs)
    written = {(args.out / name).resolve() for name in FOLDERS}
    if own := next((path for path in sources if path.resolve().parent in written), None):
        raise ValueError(f"{own} lies where results go; give another --out, or other inputs")
    try:
        summary = predict_sources(args, sources)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the GPU's memory is not enough ({str(error).splitlines()[0]}); try a smaller --batch-size, "
            "--half, --device cpu, or TEST.SLIDING_WINDOW.ENABLED True"
        ) from error
    print(json_text(summary) if args.json else _report(summary, args.out))
    return 1 if summary["skipped"] else 0


def predict_sources(args: argparse.Namespace, sources: Sequence[Path]) -> dict[str, Any]:
    """Predict images and videos as the arguments say; returns what was found, as plain values."""
    predictor = AnomalyPredictor.from_config(
        args.config_file, args.weights, score=args.score, device=args.device, half=args.half,
        min_area=MIN_AREA if args.min_area is None else args.min_area, opts=args.opts,
    )  # fmt: skip
    threshold = _threshold(args, predictor)
    if args.min_area is not None and threshold is None:
        raise argparse.ArgumentError(None, "--min-area needs a threshold: --threshold, -file or -on")
    job = Job(args, predictor)
    images = job.images([path for path in sources if not is_video(path)])
    videos = [job.video(path) for path in sources if is_video(path)]
    return {
        "score": predictor.score,
        "weights": predictor.weights,
        "threshold": threshold,
        "color_range": job.color_range,
        "images": images,
        "videos": [video for video in videos if video is not None],
        "inputs": len(sources),
        "skipped": job.skipped,
    }


def _threshold(args: argparse.Namespace, predictor: AnomalyPredictor) -> dict[str, Any] | None:
    """Give the predictor its threshold; returns what is known about it."""
    if args.threshold is not None:
        predictor.use_threshold(args.threshold)
        return {"value": args.threshold}
    file = args.threshold_file
    if args.threshold_on:
        file = args.out / "threshold.json"
        rate = {} if args.target_fpr is None else {"target_fpr": args.target_fpr}
        progress = partial(_bar, desc=f"threshold on {args.threshold_on}")
        predictor.fit_threshold(args.threshold_on, progress=progress, **rate).save(file)
    if file is not None:
        predictor.use_threshold(file)
    found = predictor.fitted_threshold
    return asdict(found) | {"file": str(file or args.weights or args.config_file)} if found else None


def _report(summary: dict[str, Any], out: Path) -> str:
    """The summary for a person."""
    lines, threshold = [f"weights: {summary['weights']}"], summary["threshold"]
    if threshold and "dataset" in threshold:
        lines.append(
            f"threshold {threshold['value']:.6g}: above it lie {100 * threshold['measured_fpr']:.3g} % of "
            f"the {threshold['known_pixels']} known pixels of {threshold['dataset']} ({threshold['file']})"
        )
    for what, key in (("images", "anomalies"), ("videos", "frames_with_anomalies")):
        counts = [found[key] for found in summary[what]]
        anomalous = "" if threshold is None else f", {sum(map(bool, counts))} with anomalies"
        lines += [f"{len(counts)} {what}{anomalous}: {out}"] if counts else []
    if threshold is None:
        lines.append("heat maps only: --threshold-on, --threshold-file or --threshold mark anomalies")
    if skipped := summary["skipped"]:
        lines.append(f"not read, or not wholly: {len(skipped)} of {summary['inputs']} inputs")
        lines += [f"  {one['error']}" for one in skipped]
    return "\n".join(lines)


class Job:
    """Predicts sources and writes their files.

    Attributes:
        skipped: inputs that could not be read, or not wholly, and why.
        color_range: of all overlays; that of the first image if none is given.
    """

    def __init__(self, args: argparse.Namespace, predictor: AnomalyPredictor) -> None:
        self.folder: Path = args.out
        self.score_format: str | None = args.save_score
        self.stream = partial(predictor.stream, batch_size=args.batch_size)
        self.color_range = tuple(args.range) if args.range else predictor.color_range
        self.skipped: list[dict[str, str]] = []

    def images(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        """Predict images and write their files; returns what was found in each."""
        found = []
        read: deque[Path] = deque()
        with _bar(total=len(paths), desc="images", disable=not paths) as bar:

            def readable() -> Iterator[np.ndarray]:
                for path in paths:
                    try:
                        image = as_rgb(path)
                    except (ValueError, OSError) as error:
                        self._skip(path, str(error))
                        bar.update()
                        continue
                    read.append(path)
                    yield image

            for prediction in self._compared(readable()):
                found.append(self._write(read.popleft(), prediction))
                bar.update()
        return found

    def video(self, path: Path) -> dict[str, Any] | None:
        """Predict a video and write its files; None if nothing of it can be read."""
        try:
            reader = VideoReader(path)
        except ValueError as error:
            self._skip(path, str(error))
            return None

        def frames() -> Iterator[Prediction]:
            predictions = _bar(self._compared(reader, format="BGR"), total=reader.frames, desc=path.stem)
            for index, prediction in enumerate(predictions):
                self._write_score(f"{path.stem}_{index:06d}", prediction)
                yield prediction

        found = write_video(self.folder, path.stem, reader.fps, frames())
        if found["frames"] < reader.least_frames:
            self._skip(
                path,
                f"video {path} is damaged or cut off: {found['frames']} of its {reader.frames} frames can be "
                "read; behind a gap, their numbers and times are too low",
            )
        return {"input": str(path)} | found

    def _compared(self, images: Iterable[np.ndarray], format: str = "RGB") -> Iterator[Prediction]:
        """Predictions in one colour range."""
        for prediction in self.stream(images, format=format):
            self.color_range = self.color_range or robust_range(prediction.score)
            yield replace(prediction, color_range=self.color_range)

    def _skip(self, path: Path, error: str) -> None:
        self.skipped.append({"input": str(path), "error": error})
        tqdm.write(error, file=sys.stderr)

    def _write(self, path: Path, prediction: Prediction) -> dict[str, Any]:
        """Write all files of one image; returns what was found and where it was written, as plain values."""
        name = path.stem
        overlay = self.folder / "overlays" / f"{name}.png"
        save_picture(overlay, prediction.captioned_overlay())
        segmentation = self.folder / "segmentation" / f"{name}.png"
        indexed = Image.fromarray(prediction.segmentation)
        indexed.putpalette([channel for color in prediction.class_colors for channel in color])
        with replacing(segmentation) as temporary:
            indexed.save(temporary, format="PNG")
        height, width = prediction.score.shape
        found = {"input": str(path), "height": height, "width": width, **extremes(prediction)}
        found |= {"overlay": str(overlay), "segmentation": str(segmentation), "anomalies": None}
        found |= {"score": self._write_score(name, prediction), "components": None}
        if prediction.threshold is not None:
            target = self.folder / "components" / f"{name}.json"
            components = [component.to_json() for component in prediction.components]
            document = {
                "image": str(path),
                "size": [height, width],
                "score": prediction.score_name,
                "threshold": prediction.threshold,
                "components": components,
            }
            save_json(target, document)
            found |= {"anomalies": len(components), "components": str(target)}
        return found

    def _write_score(self, name: str, prediction: Prediction) -> str | None:
        """The file of the raw score, (H, W) float32; None if none was asked for."""
        if self.score_format is None:
            return None
        extension, save = ("png", save_score_png) if self.score_format == "png16" else ("npy", save_array)
        target = self.folder / "scores" / f"{name}.{extension}"
        save(target, prediction.score)
        return str(target)
