"""Metrics: pixel metrics against scikit-learn, component metrics against plain loops."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import cv2
import numpy as np

from gmm_anomaly.metrics import ComponentMetrics, PixelMetrics
from tests.oracles.components import plain_components
from tools.benchmarks.timing import report, side_by_side

# Of street_frame's scores; smallest sizes of predictions and anomalies on the obstacle track.
THRESHOLD, SIZES = 8.0, (50, 10)
Frame = tuple[np.ndarray, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pixels", type=int, default=20_000_000, help="for the pixel metrics (2e7)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="of a frame (1024 2048)"
    )


def street_frame(size: tuple[int, int], seed: int) -> Frame:
    """Scores (H, W) float32 and labels (H, W) uint8 with anomalies of many sizes, missed ones and invented
    ones, specks. Few scores are equal; about one pixel in a hundred is anomalous."""
    rng = np.random.default_rng(seed)
    height, width = size
    label, raised = np.zeros(size, np.uint8), (rng.random(size) < 2e-4).astype(np.uint8)
    for _ in range(40):
        place = [int(rng.integers(width)), int(rng.integers(height // 4, height))]
        axes = rng.integers(4, max(height // 32, 5), 2).tolist()
        # Of ten anomalies seven are real, and eight are seen, not quite where they are.
        for picture, share in ((label, 0.7), (raised, 0.8)):
            if rng.random() < share:
                cv2.ellipse(picture, place, axes, 0, 0, 360, 1, -1)
            place[0] += axes[0] // 3
    label[height * 9 // 10 :] = label[:, : width // 50] = 255  # the ego vehicle, and the border
    return (rng.normal(0.0, 3.0, size) + 12.0 * raised).astype(np.float32), label


def pixel_metrics(frames: list[Frame], precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """PixelMetrics fed frame by frame, against scikit-learn on all pixels at once."""
    from sklearn.metrics import auc, average_precision_score, roc_curve

    given = [(score.astype(precision), label) for score, label in frames]
    target = np.concatenate([label[label != 255] for _, label in given])
    scores = np.concatenate([score[label != 255] for score, label in given])

    def ours() -> dict[str, Any]:
        metrics = PixelMetrics("pooled", precision)
        for score, label in given:
            metrics.update(score, label)
        return metrics.compute()

    def theirs() -> dict[str, float]:
        fpr, tpr, _ = roc_curve(target, scores)
        return {"AP": average_precision_score(target, scores), "AUROC": auc(fpr, tpr)}

    found = ours()
    difference = max(abs(found[key] - value) for key, value in theirs().items())
    pixels = sum(label.size for _, label in given)
    compared = report(
        f"pixel metrics, {precision}, {pixels:.3g} pixels in {len(frames)} frames",
        side_by_side({"scikit-learn": theirs, "ours": ours}, args),
        {("scikit-learn", "ours"): "at least 50" if precision == "float16" else ""},
    )
    print(f"exact: {found['exact']}; largest difference of AP and AUROC: {difference:.1e}")
    return compared | {"pixels": pixels, "exact": found["exact"], "difference": difference}


def component_metrics(frame: Frame, args: argparse.Namespace) -> dict[str, Any]:
    """ComponentMetrics of one frame against the plain version, with the sizes of the obstacle track."""
    ours = partial(ComponentMetrics(*SIZES, THRESHOLD).update, *frame)
    loops = partial(plain_components, *frame, THRESHOLD, *SIZES)
    anomalies, predictions = map(len, ours())
    return report(
        f"component metrics of one frame, {anomalies} anomalies, {predictions} predictions",
        side_by_side({"plain loops": loops, "ours": ours}, args),
        {("plain loops", "ours"): "at least 20"},
    )


def metrics(args: argparse.Namespace) -> dict[str, Any]:
    cv2.setNumThreads(1)
    height, width = args.size
    full, rows = divmod(args.pixels // width, height)
    frames = [street_frame((height, width), seed) for seed in range(full)]
    if rows:
        frames.append(tuple(part[:rows] for part in street_frame((height, width), full)))
    return {
        "pixel": {name: pixel_metrics(frames, name, args) for name in ("float32", "float16")},
        "component": component_metrics(street_frame((height, width), 0), args),
    }
