"""Small data sets on disk, registered with Detectron2, and random score maps for them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset

CLASSES = ["road", "car", "sky", "tree"]
COLORS = [(128, 64, 128), (0, 0, 142), (70, 130, 180), (107, 142, 35)]
# Odd and different sizes; the last image has no anomaly.
SIZES = [(17, 23), (30, 41), (9, 64), (25, 25), (33, 20)]


@dataclass
class Tree:
    """A registered data set with what is known about it."""

    name: str
    root: Path
    labels: dict[str, np.ndarray]

    @property
    def image_ids(self) -> list[str]:
        return sorted(self.labels)

    def inputs(self, *image_ids: str) -> list[dict[str, str]]:
        return [{"image_id": image_id} for image_id in image_ids]


def write_tree(root: Path, labels: dict[str, np.ndarray]) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number, (image_id, label) in enumerate(labels.items()):
        image = np.random.default_rng(number).integers(0, 256, (*label.shape, 3)).astype(np.uint8)
        cv2.imwrite(str(root / "images" / f"{image_id}.png"), image)
        cv2.imwrite(str(root / "labels" / f"{image_id}.png"), label)


@pytest.fixture
def registered():
    """Gives names under which a test may register data sets."""
    return lambda prefix: f"{prefix}_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def anomaly_tree(tmp_path, registered) -> Tree:
    rng = np.random.default_rng(7)
    labels = {}
    for number, size in enumerate(SIZES):
        label = np.zeros(size, np.uint8)
        if number < len(SIZES) - 1:
            label[3:9, 4:17] = 1
            label[rng.random(size) < 0.05] = 1
        label[rng.random(size) < 0.1] = 255
        labels[f"frame_{number:02d}"] = label
    tree = Tree(registered("tiny_anomaly"), tmp_path / "anomaly", labels)
    write_tree(tree.root, labels)
    register_anomaly_dataset(tree.name, tree.root / "images", tree.root / "labels")
    return tree


@pytest.fixture
def closed_tree(tmp_path, registered) -> Tree:
    rng = np.random.default_rng(8)
    labels = {}
    for number, size in enumerate(SIZES):
        label = rng.integers(0, len(CLASSES), size).astype(np.uint8)
        label[rng.random(size) < 0.1] = 255
        labels[f"frame_{number:02d}"] = label
    tree = Tree(registered("tiny_closed"), tmp_path / "closed", labels)
    write_tree(tree.root, labels)
    register_segmentation_dataset(
        tree.name, tree.root / "images", tree.root / "labels", classes=CLASSES, colors=COLORS
    )
    return tree


@pytest.fixture
def scores(anomaly_tree) -> dict[str, dict[str, np.ndarray]]:
    """{score: {image id: (H, W) float32}}: "good" tells anomalies well, "bad" hardly; both have ties."""
    rng = np.random.default_rng(9)
    found: dict[str, dict[str, np.ndarray]] = {"good": {}, "bad": {}}
    for image_id, label in anomaly_tree.labels.items():
        noise = rng.normal(size=(2, *label.shape)).astype(np.float32)
        found["good"][image_id] = np.round(noise[0] + 2.5 * (label == 1), 2).astype(np.float32)
        found["bad"][image_id] = np.round(30 * noise[1] + 10 * (label == 1), 1).astype(np.float32)
    return found
