"""A tiny network with random weights, saved as a training saves it, and images for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

CONFIG = Path(__file__).resolve().parents[2] / "configs/synthetic/effnetlite0_deeplabv3plus_softmax.yaml"
# Enlarged for the network, so that scores are resized on their way back.
SIZE = (44, 60)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> SimpleNamespace:
    """``config`` and ``weights`` of a softmax network; its config names two scores and no post-process."""
    from detectron2.modeling import build_model

    from gmm_anomaly.engine import build_config

    folder = tmp_path_factory.mktemp("tiny")
    cfg = build_config(
        str(CONFIG),
        [
            "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.FEATURE_DISTANCE.FEATURES", "[]",
            "TEST.SCORES", "['energy', 'msp']", "TEST.POSTPROCESS", "[]", "INPUT.MIN_SIZE_TEST", 64,
            "DATALOADER.NUM_WORKERS", 0,
        ],
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    # Without statistics of its batch norms a fresh network says nearly the same everywhere.
    images = [{"image": torch.from_numpy(picture(seed).transpose(2, 0, 1).copy())} for seed in range(4)]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.decoder(model.train().backbone(model.preprocess(images).tensor))
        model.classifier.predictor.weight.mul_(30)
    config, weights = folder / "config.yaml", folder / "model_final.pth"
    config.write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, weights)
    return SimpleNamespace(config=str(config), weights=str(weights))


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 RGB with large shapes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return str(path)


@pytest.fixture(scope="session")
def make_picture():
    return picture


@pytest.fixture(scope="session")
def save_rgb():
    return save


@pytest.fixture(scope="session")
def predictor(trained):
    from gmm_anomaly import AnomalyPredictor

    return AnomalyPredictor.from_config(trained.config, trained.weights, device="cpu")


@pytest.fixture
def anomaly_set(tmp_path, request):
    """A registered anomaly set of three images, some labels void; gives its name."""
    from gmm_anomaly.data import register_anomaly_dataset

    rng = np.random.default_rng(5)
    for index in range(3):
        save(tmp_path / "set/images" / f"{index}.png", picture(index))
        label = rng.choice(np.array([0, 1, 255], np.uint8), SIZE, p=[0.8, 0.1, 0.1])
        save(tmp_path / "set/labels" / f"{index}.png", label[..., None])
    name = f"predicted_{abs(hash(request.node.nodeid))}"
    register_anomaly_dataset(name, str(tmp_path / "set/images"), str(tmp_path / "set/labels"))
    return name
