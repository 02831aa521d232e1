"""The folder of a real run: evaluators on tiny data, a training log and a checkpoint with mixtures."""

from __future__ import annotations

import json
import uuid
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset
from gmm_anomaly.evaluation import AnomalyEvaluator, ClosedSetEvaluator, write_results
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.report.page import run as write_page

CLASSES = ["road", "car <big> & fast", "sky"]
SIZE = (48, 64)
IMAGES = 5


def write_data(root: Path) -> tuple[str, str]:
    """Registers a closed set and an anomaly set of the same pictures; returns their names."""
    rng = np.random.default_rng(1)
    for folder in ("images", "classes", "anomalies"):
        (root / folder).mkdir(parents=True)
    for number in range(IMAGES):
        anomaly = np.zeros(SIZE, np.uint8)
        anomaly[10 : 20 + 3 * number, 5:30] = 1
        anomaly[40:] = 255
        image, classes = rng.integers(0, 256, (*SIZE, 3)), rng.integers(0, 3, SIZE)
        pictures = {"images": image, "classes": classes, "anomalies": anomaly}
        for folder, picture in pictures.items():
            cv2.imwrite(str(root / folder / f"frame_{number}.png"), picture.astype(np.uint8))
    suffix = uuid.uuid4().hex[:8]
    closed, anomaly_set = f"report_closed_{suffix}", f"report_anomaly_{suffix}"
    register_segmentation_dataset(closed, root / "images", root / "classes", classes=CLASSES)
    register_anomaly_dataset(anomaly_set, root / "images", root / "anomalies")
    return closed, anomaly_set


def write_run(folder: Path, datasets: tuple[str, str], strength: float) -> Path:
    """A run whose first score tells anomalies the better the larger ``strength`` is."""
    rng = np.random.default_rng(2)
    closed, anomaly = datasets
    closed_evaluator = ClosedSetEvaluator(closed, output_dir=folder, num_visualizations=1)
    anomaly_evaluator = AnomalyEvaluator(
        anomaly, ["gmm_density", "msp"], component_track="obstacle", output_dir=folder, num_best_worst=1
    )
    for number in range(IMAGES):
        item = [{"image_id": f"frame_{number}"}]
        closed_evaluator.process(item, [{"sem_seg": torch.tensor(rng.normal(size=(3, *SIZE)))}])
        label = anomaly_evaluator.records.label(number) == 1
        maps = {
            name: torch.tensor(rng.normal(size=SIZE) + part * strength * label, dtype=torch.float32)
            for name, part in (("gmm_density", 1.0), ("msp", 0.3))
        }
        anomaly_evaluator.process(item, [{"anomaly_scores": maps}])
    results = {closed: closed_evaluator.evaluate(), anomaly: anomaly_evaluator.evaluate()}
    write_results(results, folder, iteration=40, weights="")

    lines = [
        {"iteration": step, "total_loss": 3 / (1 + step), "loss_ce": 2 / (1 + step), "lr": 0.01, "time": 0.5}
        | {"gmm/memory_fill": step / 40, "gmm/effective_components/road": 1.5}
        for step in range(0, 40, 2)
    ]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 4')
    (folder / "config.yaml").write_text(
        f"DATASETS:\n  TEST: [{closed}, {anomaly}]\nMODEL:\n  CLASSIFIER:\n    NAME: gmm\n"
        f"SOLVER:\n  BASE_LR: {0.01 * strength}\n  MAX_ITER: 40\nOUTPUT_DIR: {folder}\n"
    )
    bank = GaussianMixtureBank(3, 4, 8, memory_size=16, samples_per_update=4)
    bank.fitted[:2] = True
    bank.scales[0] = 0.25
    bank.memory.count[:4] = torch.tensor([5, 5, 5, 5])
    bank.memory.count[4:8] = torch.tensor([9, 0, 0, 0])
    state = {f"classifier.bank.{key}": value for key, value in bank.state_dict().items()}
    torch.save({"model": state, "iteration": 39}, folder / "model_final.pth")
    return folder


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory) -> list[Path]:
    """Two finished runs on the same data, the second one the better."""
    root = tmp_path_factory.mktemp("report")
    datasets = write_data(root / "data")
    return [write_run(root / name, datasets, gain) for name, gain in (("first", 1.0), ("second", 2.5))]


@pytest.fixture(scope="module")
def both_runs(run_folders, tmp_path_factory) -> str:
    """The page of both, by the command."""
    target = tmp_path_factory.mktemp("page") / "page.html"
    write_page(Namespace(runs=run_folders, out=target, pictures=3, json=False))
    return target.read_text()
