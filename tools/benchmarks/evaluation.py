"""Evaluation of large frames with five scores: what the evaluator takes on top of the network."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from gmm_anomaly.data import register_anomaly_dataset
from gmm_anomaly.evaluation import AnomalyEvaluator
from tools.benchmarks import models
from tools.benchmarks.metrics import street_frame
from tools.benchmarks.timing import report, side_by_side

NAME = "benchmark_frames"
SCORES = ("gmm_density", "msp", "max_logit", "energy", "entropy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models.add_arguments(parser)
    parser.set_defaults(size=(1024, 2048), batch=1)
    parser.add_argument("--frames", type=int, default=17, help="of the data set (17: pools fill up once)")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / part for part in ("images", "labels", "output")]
        for part in parts:
            part.mkdir()
        score, label = street_frame(args.size, 0)
        for index in range(args.frames):
            cv2.imwrite(str(parts[0] / f"{index}.png"), np.zeros((*args.size, 3), np.uint8))
            cv2.imwrite(str(parts[1] / f"{index}.png"), label)
        register_anomaly_dataset(NAME, parts[0], parts[1], overwrite=True)
        try:
            return compare(args, torch.from_numpy(score).to(args.device), parts[2])
        finally:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)


def compare(args: argparse.Namespace, score: torch.Tensor, output: Path) -> dict[str, Any]:
    """score: (H, W), of every frame; the others are as far from it as another seed's noise."""
    evaluator = AnomalyEvaluator(NAME, SCORES, output_dir=output)
    network = models.Inference(args, models.twin_config(args, "gmm"))
    maps = {name: score + torch.randn_like(score) for name in SCORES}
    inputs = [{"image_id": str(index)} for index in range(args.frames)]

    def data_set() -> None:
        evaluator.reset()
        for item in inputs:
            evaluator.process([item], [{"anomaly_scores": maps}])
        evaluator.evaluate()

    seconds = side_by_side({"the network": network, "the evaluator": data_set}, args)
    seconds["the evaluator"] = [value / args.frames for value in seconds["the evaluator"]]
    found = report(f"a frame of {args.size[0]}x{args.size[1]}, {len(SCORES)} scores", seconds, {}, 1)
    print("wanted of the evaluator: at most 30 ms on a GPU")
    return found
