"""Calibration against explicit float64 formulas on every labelled pixel of every training image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch.nn import functional as F

from gmm_anomaly.data import read_image, read_label
from gmm_anomaly.engine import Checkpointer, build_config, calibrate
from gmm_anomaly.evaluation.scoring import AnomalyScorer
from gmm_anomaly.gmm import UnfittedMixtureError
from gmm_anomaly.gmm.tied_gaussians import SHRINKAGE

LEVELS = ["level1", "level3"]
CLASSES = 10


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    # 52 rows: padded to 64, and padding has no label.
    return build_config(
        "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml",
        [
            "MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", "", "MODEL.CLASSIFIER.NAME", "softmax",
            "MODEL.FEATURE_DISTANCE.FEATURES", LEVELS, "MODEL.FEATURE_DISTANCE.PIXELS_PER_IMAGE", 10**6,
            "MODEL.CHANNELS_LAST", False, "TEST.SCORES", ["hybrid", "feature_distance", "energy"],
            "DATASETS.SYNTHETIC.NUM_TRAIN", 3, "DATASETS.SYNTHETIC.HEIGHT", 64,
            "DATASETS.SYNTHETIC.WIDTH", 128, "INPUT.MIN_SIZE_TEST", 0, "DATASETS.SYNTHETIC.CACHE_DIR", "",
            "OUTPUT_DIR", str(tmp_path_factory.mktemp("run")),
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(cfg, model)
    assert model.training, "the mode is as it was"
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all(name.startswith("feature_distance.") for name in changed)
    return model.eval()


def images(cfg):
    metadata = MetadataCatalog.get("synthetic_street_train")
    for record in DatasetCatalog.get("synthetic_street_train"):
        image = np.ascontiguousarray(read_image(record, cfg.INPUT.FORMAT).transpose(2, 0, 1))
        yield torch.from_numpy(image), read_label(record, metadata)


@torch.no_grad()
def labelled(model, cfg, level):
    """All labelled pixels of a level (N, F) float64, their labels (N,), and the energy there."""
    features, labels = [], []
    for image, label in images(cfg):
        feature = model.backbone(model.preprocess([{"image": image}]).tensor)[level][0]
        small = F.interpolate(torch.from_numpy(label)[None, None].float(), feature.shape[-2:])[0, 0].numpy()
        features.append(feature.numpy()[:, small < CLASSES].T.astype(np.float64))
        labels.append(small[small < CLASSES].astype(int))
    return np.concatenate(features), np.concatenate(labels)


def log_distances(features, labels, queries):
    seen = np.unique(labels)
    means = {c: features[labels == c].mean(0) for c in seen}
    residual = features - np.stack([means[c] for c in labels])
    covariance = residual.T @ residual / len(features)
    covariance += SHRINKAGE * np.diag(covariance).mean() * np.eye(len(covariance))
    precision = np.linalg.inv(covariance)
    offsets = queries[:, None] - np.stack([means[c] for c in seen])
    return np.log(np.maximum(np.einsum("ncd,de,nce->nc", offsets, precision, offsets).min(1), 1e-3))


def test_scores_are_the_formula(cfg, model):
    image, _ = next(images(cfg))
    with torch.no_grad():
        found = AnomalyScorer.from_config(cfg, model)([{"image": image}])[0]["anomaly_scores"]
        pyramid = model.backbone(model.preprocess([{"image": image}]).tensor)
    expected = 0
    for level in LEVELS:
        features, labels = labelled(model, cfg, level)
        own = log_distances(features, labels, features)
        here = log_distances(features, labels, pyramid[level][0].flatten(1).T.double().numpy())
        standard = torch.from_numpy((here - own.mean()) / own.std()).view(1, 1, *pyramid[level].shape[-2:])
        finest = F.interpolate(standard, pyramid[LEVELS[0]].shape[-2:], mode="bilinear")
        expected = expected + F.interpolate(finest, image.shape[-2:], mode="bilinear")[0, 0]
    torch.testing.assert_close(found["feature_distance"].double(), expected, rtol=1e-3, atol=2e-3)

    energies = []
    with torch.no_grad():
        for other, label in images(cfg):
            features = model.decoder(model.backbone(model.preprocess([{"image": other}]).tensor)).features
            energy = -model.classifier(features).logits.logsumexp(1)[0]
            small = F.interpolate(torch.from_numpy(label)[None, None].float(), energy.shape)[0, 0]
            energies.append(energy[small < CLASSES])
    energies = torch.cat(energies).double()
    standard = (found["energy"] - energies.mean()) / energies.std(correction=0)
    torch.testing.assert_close(
        found["hybrid"].double(), standard + found["feature_distance"].double(), rtol=1e-3, atol=2e-3
    )


def test_weights_without_calibration_are_refused_with_the_cure(cfg, model, tmp_path):
    bare = build_model(cfg)
    bare.load_state_dict(model.state_dict())
    state = {key: value for key, value in bare.state_dict().items() if "feature_distance" not in key}
    path = tmp_path / "trained.pth"
    torch.save({"model": state}, path)
    fresh = build_model(cfg)
    with pytest.raises(ValueError, match="train_net.py --calibrate"):
        Checkpointer(fresh).load_for_evaluation(str(path))
    Checkpointer(fresh).load_for_evaluation(str(path), calibrated=False)
    with torch.no_grad(), pytest.raises(UnfittedMixtureError, match="train_net.py --calibrate"):
        fresh.eval()([{"image": next(images(cfg))[0]}])


def test_unknown_level_is_named(cfg):
    other = cfg.clone()
    other.defrost()
    other.MODEL.FEATURE_DISTANCE.FEATURES = ["level9"]
    with pytest.raises(ValueError, match="FEATURE_DISTANCE.FEATURES: expected .*level1.*found level9"):
        build_model(other)
