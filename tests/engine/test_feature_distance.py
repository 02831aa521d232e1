"""Fitting distances against explicit float64 formulas on every labelled pixel of every training image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch.nn import functional as F

from gmm_anomaly.data import read_image, read_label
from gmm_anomaly.engine import Checkpointer, build_config, fit_feature_distance
from gmm_anomaly.engine.feature_distance import LabelledImages
from gmm_anomaly.gmm import UnfittedMixtureError
from gmm_anomaly.gmm.tied_gaussians import SHRINKAGE

CLASSES = 10


def config(folder, components, levels):
    # 52 rows: padded to 64, and padding has no label.
    return build_config(
        "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml",
        [
            "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.CLASSIFIER.NAME", "softmax",
            "MODEL.FEATURE_DISTANCE.FEATURES", levels, "MODEL.FEATURE_DISTANCE.COMPONENTS", components,
            "MODEL.FEATURE_DISTANCE.PIXELS_PER_IMAGE", 10**6,
            "TEST.SCORES", ["hybrid", "feature_distance", "energy"],
            "DATASETS.SYNTHETIC.NUM_TRAIN", 3, "DATASETS.SYNTHETIC.HEIGHT", 64,
            "DATASETS.SYNTHETIC.WIDTH", 128, "INPUT.MIN_SIZE_TEST", 0, "DATASETS.SYNTHETIC.CACHE_DIR", "",
            "OUTPUT_DIR", str(folder),
        ],
    )  # fmt: skip


def fitted(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_feature_distance(cfg, model)
    assert model.training, "the mode is as it was"
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all(name.startswith("feature_distance.") for name in changed)
    return model.eval()


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return config(tmp_path_factory.mktemp("run"), 0, ["level1", "level3"])


@pytest.fixture(scope="module")
def model(cfg):
    return fitted(cfg)


def images(cfg):
    metadata = MetadataCatalog.get("synthetic_street_train")
    for record in DatasetCatalog.get("synthetic_street_train"):
        image = np.ascontiguousarray(read_image(record, cfg.INPUT.FORMAT).transpose(2, 0, 1))
        yield torch.from_numpy(image), read_label(record, metadata)


@torch.no_grad()
def features_of(model, image, level):
    pyramid = model.backbone(model.preprocess([{"image": image}]).tensor)
    # What the softmax classifier compares with its classes: the decoder's features.
    return model.decoder(pyramid).features if level == "embedding" else pyramid[level]


def labelled(model, cfg, level):
    """All labelled pixels of a level (N, F) float64, and their labels (N,): 0 with a single Gaussian."""
    features, labels = [], []
    for image, label in images(cfg):
        feature = features_of(model, image, level)[0]
        small = F.interpolate(torch.from_numpy(label)[None, None].float(), feature.shape[-2:])[0, 0].numpy()
        features.append(feature.numpy()[:, small < CLASSES].T.astype(np.float64))
        labels.append(small[small < CLASSES].astype(int))
    single = cfg.MODEL.FEATURE_DISTANCE.COMPONENTS == 1
    return np.concatenate(features), np.concatenate(labels) * (not single)


def log_distances(features, labels, queries):
    seen = np.unique(labels)
    means = {c: features[labels == c].mean(0) for c in seen}
    residual = features - np.stack([means[c] for c in labels])
    covariance = residual.T @ residual / len(features)
    covariance += SHRINKAGE * np.diag(covariance).mean() * np.eye(len(covariance))
    precision = np.linalg.inv(covariance)
    offsets = queries[:, None] - np.stack([means[c] for c in seen])
    return np.log(np.maximum(np.einsum("ncd,de,nce->nc", offsets, precision, offsets).min(1), 1e-3))


@pytest.mark.parametrize("single", [False, True])
def test_scores_are_the_formula(cfg, model, single, tmp_path):
    if single:
        cfg = config(tmp_path, 1, ["level3", "embedding"])
        model = fitted(cfg)
    image, _ = next(images(cfg))
    with torch.no_grad():
        found = model([{"image": image}])[0]["anomaly_scores"]
    expected = 0
    levels = cfg.MODEL.FEATURE_DISTANCE.FEATURES
    maps = {level: features_of(model, image, level) for level in levels}
    finest_size = max(feature.shape[-2:] for feature in maps.values())
    for level, feature in maps.items():
        features, labels = labelled(model, cfg, level)
        own = log_distances(features, labels, features)
        here = log_distances(features, labels, feature[0].flatten(1).T.double().numpy())
        standard = torch.from_numpy((here - own.mean()) / own.std()).view(1, 1, *feature.shape[-2:])
        finest = F.interpolate(standard, finest_size, mode="bilinear")
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


def test_weights_without_distances_are_refused_with_the_cure(cfg, model, tmp_path):
    bare = build_model(cfg)
    bare.load_state_dict(model.state_dict())
    state = {key: value for key, value in bare.state_dict().items() if "feature_distance" not in key}
    path = tmp_path / "trained.pth"
    torch.save({"model": state}, path)
    fresh = build_model(cfg)
    with pytest.raises(ValueError, match="train_net.py --fit-feature-distance"):
        Checkpointer(fresh).load_for_evaluation(str(path))
    Checkpointer(fresh).load_for_evaluation(str(path), distances=False)
    with torch.no_grad(), pytest.raises(UnfittedMixtureError, match="train_net.py --fit-feature-distance"):
        fresh.eval()([{"image": next(images(cfg))[0]}])


def test_distances_of_other_features_are_replaced(cfg, model, tmp_path):
    path = tmp_path / "fitted.pth"
    torch.save({"model": model.state_dict()}, path)
    other = cfg.clone()
    other.defrost()
    other.MODEL.FEATURE_DISTANCE.FEATURES = ["level1", "level4", "embedding"]
    changed = build_model(other)
    with pytest.raises(ValueError, match="does not fit the model.*train_net.py --fit-feature-distance"):
        Checkpointer(changed).load_for_evaluation(str(path))
    Checkpointer(changed).load_for_evaluation(str(path), distances=False)
    assert not changed.feature_distance.is_fitted
    torch.testing.assert_close(changed.classifier.predictor.weight, model.classifier.predictor.weight)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("FEATURES", ["level9"], "expected .*level1.*embedding.*found level9"),
        ("WEIGHTS", [1.0], "expected a number for each of FEATURES .level1, level3., or none"),
    ],
)
def test_wrong_keys_are_named(cfg, key, value, message):
    other = cfg.clone()
    other.defrost()
    other.MODEL.FEATURE_DISTANCE[key] = value
    with pytest.raises(ValueError, match=f"MODEL.FEATURE_DISTANCE.{key}: {message}"):
        build_model(other)


def test_images_that_would_be_enlarged_are_not_fitted_to(cfg, monkeypatch):
    other = cfg.clone()
    other.defrost()
    other.INPUT.MIN_SIZE_TEST = 64
    found = LabelledImages(other)
    sizes = iter([(32, 64), (64, 128), (128, 256), *[(63, 126)] * 3])
    monkeypatch.setattr("gmm_anomaly.engine.feature_distance.image_size", lambda record: next(sizes))
    assert found.evenly_spaced(3) == [1, 2]
    # If all are, they are what there is.
    assert found.evenly_spaced(2) == [0, 2]


def test_what_hybrid_takes_of_a_generative_classifier_is_chosen_by_key(cfg, tmp_path):
    """Moments of the density, and of the energy of the logits, over all labelled pixels."""
    generative = cfg.clone()
    generative.defrost()
    generative.MODEL.CLASSIFIER.NAME = "gmm"
    torch.manual_seed(0)
    model = build_model(generative).eval()
    with torch.no_grad():
        model.bank.means.normal_()
        model.bank.fitted.fill_(True)
        maps = {"density": [], "energy": []}
        for image, label in images(cfg):
            found = model.classifier(features_of(model, image, "embedding"))
            small = F.interpolate(torch.from_numpy(label)[None, None].float(), found.logits.shape[-2:])[0, 0]
            maps["density"].append(-found.log_density.amax(1)[0][small < CLASSES])
            maps["energy"].append(-found.logits.logsumexp(1)[0][small < CLASSES])
    states = {}
    for kind, values in maps.items():
        generative.MODEL.FEATURE_DISTANCE.HYBRID_WITH = kind
        state = model.state_dict()
        model = build_model(generative).eval()
        model.load_state_dict(state, strict=False)
        fit_feature_distance(generative, model)
        states[kind] = model.state_dict()
        values = torch.cat(values).double()
        mean, std = model.feature_distance.hybrid_moments
        torch.testing.assert_close(mean.double(), values.mean(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(std.double(), values.std(correction=0), rtol=1e-4, atol=1e-5)
    # Moments of the one are never taken for those of the other.
    path = tmp_path / "fitted_on_density.pth"
    torch.save({"model": states["density"]}, path)
    with pytest.raises(ValueError, match="train_net.py --fit-feature-distance"):
        Checkpointer(model).load_for_evaluation(str(path))
