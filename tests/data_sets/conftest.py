"""Small data sets on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.data import register_segmentation_dataset


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No data set of the machine is seen: the common root is an empty folder of the test."""
    for name in list(os.environ):
        if name.startswith("GMM_ANOMALY_"):
            monkeypatch.delenv(name)
    root = tmp_path / "datasets"
    root.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


@pytest.fixture
def datasets_root(tmp_path) -> Path:
    """The folder that DETECTRON2_DATASETS names."""
    return tmp_path / "datasets"


@pytest.fixture
def cfg(tmp_path):
    """Detectron2's defaults with the project's keys, no workers, output in the test's folder."""
    config = get_cfg()
    add_gmm_anomaly_config(config)
    config.DATALOADER.NUM_WORKERS = 0
    config.OUTPUT_DIR = str(tmp_path / "output")
    config.SEED = 7
    return config


def _save(path: str | Path, array: np.ndarray, **options) -> str:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return str(path)


@pytest.fixture(scope="session")
def save_image():
    """``save_image(path, array, **options of PIL)``: writes an array in the format of the extension."""
    return _save


@pytest.fixture(scope="session")
def make_pairs():
    """``make_pairs(root, names, values)``: images/NAME.png and labels/NAME.png with label values by turns."""

    def make(root: Path, names, values=(0, 1, 255), size=(12, 16)):
        rng = np.random.default_rng(0)
        for name in names:
            _save(root / f"images/{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
            _save(root / f"labels/{name}.png", np.resize(np.array(values, np.uint8), size))

    return make


@pytest.fixture
def closed(tmp_path, make_pairs, cfg):
    """Two closed sets of three classes with different label values, and a config that trains on crops of
    both."""
    make_pairs(tmp_path / "one", "abcd", values=(0, 1, 2, 255))
    make_pairs(tmp_path / "two", "ef", values=(10, 11, 12))
    for name, label_map in (("one", None), ("two", {10: 0, 11: 1, 12: 2})):
        folders = (tmp_path / name / "images", tmp_path / name / "labels")
        register_segmentation_dataset(name, *folders, classes=list("xyz"), label_map=label_map)
    cfg.DATASETS.TRAIN = ("one", "two")
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [8, 10]
    return cfg
