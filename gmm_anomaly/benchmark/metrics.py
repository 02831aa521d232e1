"""Metrics: pixel metrics against scikit-learn, component metrics against plain loops, cost of a frame.

Everything runs on one core; the times are processor times, so that other processes do not show in them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from gmm_anomaly.benchmark.plain_components import plain_components
from gmm_anomaly.benchmark.timing import environment, ratio, side_by_side, summary
from gmm_anomaly.metrics import CalibrationMetrics, ComponentMetrics, ConfusionMetrics, PixelMetrics

CLASSES = 19
Frame = tuple[np.ndarray, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pixels", type=int, default=20_000_000, help="pixels for the pixel metrics (default 2e7)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="of a frame (1024 2048)"
    )


def street_frame(size: tuple[int, int], seed: int) -> Frame:
    """Scores (H, W) float32 and labels (H, W) uint8 with anomalies of many sizes, missed and invented ones,
    specks.

    Scores are continuous, roughly −12 to 24, few of them equal; about one pixel in a hundred is anomalous.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    label = np.zeros(size, np.uint8)
    raised = np.zeros(size, np.uint8)
    for _ in range(40):
        centre = (int(rng.integers(width)), int(rng.integers(height // 4, height)))
        axes = tuple(int(axis) for axis in rng.integers(4, max(height // 32, 5), 2))
        shift = rng.integers(-axes[0] // 2, axes[0] // 2 + 1, 2)
        if rng.random() < 0.7:
            cv2.ellipse(label, centre, axes, 0, 0, 360, 1, -1)
        if rng.random() < 0.8:
            cv2.ellipse(
                raised, (centre[0] + int(shift[0]), centre[1] + int(shift[1])), axes, 0, 0, 360, 1, -1
            )
    raised[rng.random(size) < 2e-4] = 1
    label[height * 9 // 10 :] = 255  # the ego vehicle
    label[:, : width // 50] = 255
    score = rng.normal(0.0, 3.0, size) + 12.0 * raised
    return score.astype(np.float32), label


def pixel_metrics(frames: list[Frame], repeats: int) -> dict[str, Any]:
    """PixelMetrics fed frame by frame, against scikit-learn on all pixels at once."""
    try:
        import sklearn
        from sklearn.metrics import auc, average_precision_score, roc_curve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this comparison needs scikit-learn: pip install scikit-learn") from error

    results: dict[str, Any] = {"scikit-learn": sklearn.__version__}
    for precision in ("float32", "float16"):
        given = [(score.astype(precision), label) for score, label in frames]
        valid = [label != 255 for _, label in frames]
        target = np.concatenate([label[mask] for (_, label), mask in zip(given, valid, strict=True)])
        scores = np.concatenate([score[mask] for (score, _), mask in zip(given, valid, strict=True)])
        last: dict[str, Any] = {}

        # Default arguments bind this round's data.
        def ours(given: list[Frame] = given, precision: Any = precision, last: dict[str, Any] = last) -> None:
            metrics = PixelMetrics("pooled", precision)
            for score, label in given:
                metrics.update(score, label)
            last["ours"] = metrics.compute()

        def theirs(
            target: np.ndarray = target, scores: np.ndarray = scores, last: dict[str, Any] = last
        ) -> None:
            last["AP"] = float(average_precision_score(target, scores))
            fpr, tpr, _ = roc_curve(target, scores)
            last["AUROC"] = float(auc(fpr, tpr))

        seconds = side_by_side({"scikit-learn": theirs, "ours": ours}, repeats, time.process_time)
        results[precision] = {
            "pixels": sum(label.size for _, label in given),
            "exact": last["ours"]["exact"],
            "difference": max(abs(last["ours"][key] - last[key]) for key in ("AP", "AUROC")),
            **_compared(seconds, "scikit-learn", "ours"),
        }
    return results


def component_metrics(frame: Frame, repeats: int) -> dict[str, Any]:
    """ComponentMetrics of one frame against the plain version, with the sizes of the obstacle track."""
    score, label = frame
    threshold = 8.0
    sizes = (50, 10)
    last: dict[str, Any] = {}

    def ours() -> None:
        found = ComponentMetrics(*sizes, threshold).update(score, label)
        last["ours"] = [sorted((rows[:, 0] / rows[:, 1]).tolist()) for rows in found]

    def theirs() -> None:
        last["plain"] = [sorted(values) for values in plain_components(score, label, threshold, *sizes)]

    seconds = side_by_side({"plain loops": theirs, "ours": ours}, repeats, time.process_time)
    if last["ours"] != last["plain"]:
        raise RuntimeError("the two versions of the component metrics disagree: one of them is wrong")
    anomalies, predictions = map(len, last["ours"])
    return {"anomalies": anomalies, "predictions": predictions, **_compared(seconds, "plain loops", "ours")}


def whole_frame(frame: Frame, repeats: int) -> dict[str, Any]:
    """Every metric on one frame, from scores to numbers: ``update`` and ``compute`` of each."""
    score, label = frame
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, label.shape).astype(np.uint8)
    classes[label == 255] = 255
    predicted = np.where(rng.random(label.shape) < 0.9, classes, 0).astype(np.uint8)
    confidence = rng.uniform(1 / CLASSES, 1, label.shape).astype(np.float32)

    def run(metrics: Any, *arguments: np.ndarray, **named: np.ndarray) -> None:
        metrics.update(*arguments, **named)
        metrics.compute()

    parts: dict[str, Callable[[], None]] = {
        "pixel, float32": lambda: run(PixelMetrics("pooled", "float32"), score, label),
        "pixel, float16": lambda: run(PixelMetrics("pooled", "float16"), score, label),
        "pixel, smiyc": lambda: run(PixelMetrics("smiyc", "float16"), score, label),
        "component": lambda: run(ComponentMetrics.anomaly_track(8.0), score, label),
        "confusion": lambda: run(ConfusionMetrics(CLASSES), predicted, classes),
        "calibration": lambda: run(CalibrationMetrics(), confidence, pred=predicted, label=classes),
    }

    def everything() -> None:
        for part in parts.values():
            part()

    seconds = side_by_side({**parts, "all of them": everything}, repeats, time.process_time)
    return {name: summary(values)._asdict() for name, values in seconds.items()}


def _compared(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    times = {name: summary(values)._asdict() for name, values in seconds.items()}
    return {"seconds": times, "ratio": ratio(seconds[slow], seconds[fast])._asdict()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    cv2.setNumThreads(1)
    size = (args.size[0], args.size[1])
    count, rest = divmod(args.pixels, size[0] * size[1])
    frames = [street_frame(size, seed) for seed in range(count)]
    rows = rest // size[1]
    if rows:
        score, label = street_frame(size, count)
        frames.append((score[:rows], label[:rows]))
    if not frames:
        raise ValueError(f"--pixels {args.pixels} is less than one row of --size {size[0]} {size[1]}")

    print("processor time of one thread: median (shortest to longest)")
    data: dict[str, Any] = {"pixel": pixel_metrics(frames, args.repeats)}
    for precision in ("float32", "float16"):
        part = data["pixel"][precision]
        print(f"pixel metrics, {precision}, {part['pixels']:.3g} pixels in {len(frames)} frames")
        _print_compared(part, wanted=50)
        print(f"  exact: {part['exact']}; largest difference of AP and AUROC: {part['difference']:.1e}")

    frame = street_frame(size, 0)
    data["component"] = component_metrics(frame, args.repeats)
    part = data["component"]
    found = f"{part['anomalies']} anomalies, {part['predictions']} predictions"
    print(f"component metrics, {size[0]}x{size[1]}, {found}")
    _print_compared(part, wanted=20)

    data["frame"] = whole_frame(frame, args.repeats)
    print(f"one frame of {size[0]}x{size[1]}, update and compute (0.25 s wanted for all at 1024x2048)")
    for name, times in data["frame"].items():
        _print_times(name, times)
    return {
        "settings": {
            "pixels": args.pixels,
            "size": list(size),
            "repeats": args.repeats,
            "clock": "processor time of one thread",
        },
        "environment": environment([np, cv2]),
        **data,
    }


def _print_times(name: str, times: dict[str, float]) -> None:
    spread = f"({1e3 * times['shortest']:.1f} to {1e3 * times['longest']:.1f})"
    print(f"  {name:16s} {1e3 * times['median']:10.1f} ms  {spread}")


def _print_compared(part: dict[str, Any], wanted: int) -> None:
    for name, times in part["seconds"].items():
        _print_times(name, times)
    times = part["ratio"]
    spread = f"({times['shortest']:.0f} to {times['longest']:.0f})"
    print(f"  {'ratio':16s} {times['median']:10.1f}     {spread}, at least {wanted} wanted")
