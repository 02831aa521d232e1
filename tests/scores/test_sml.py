"""Standardized max logits against loops in float64, their moments against every training pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from gmm_anomaly.data import get_records, read_image, read_label
from gmm_anomaly.engine import build_config, fit_feature_distance
from gmm_anomaly.modeling.max_logit_moments import MaxLogitMoments, UnfittedMomentsError
from gmm_anomaly.scores import LOGITS, MAX_LOGIT_MOMENTS, PixelOutputs, get_scores, sml_score

CLASSES = 10


def test_score_is_its_formula():
    rng = np.random.default_rng(0)
    logits, means, stds = rng.normal(size=(5, 6, 7)) * 3, rng.normal(size=5), rng.uniform(0.5, 2, size=5)
    expected = np.empty((6, 7))
    for y in range(6):
        for x in range(7):
            best = logits[:, y, x].argmax()
            expected[y, x] = -(logits[best, y, x] - means[best]) / stds[best]
    arguments = [torch.from_numpy(part.astype(np.float32)) for part in (logits, means, stds)]
    np.testing.assert_allclose(sml_score(*arguments).numpy(), expected, rtol=1e-4, atol=1e-5)
    outputs = PixelOutputs(torch.stack([arguments[0]] * 2), max_logit_moments=(arguments[1], arguments[2]))
    found = get_scores(["sml"], given={LOGITS, MAX_LOGIT_MOMENTS})["sml"](outputs)
    torch.testing.assert_close(found[1], sml_score(*arguments))


def test_classes_hardly_predicted_share_the_moments_of_all():
    moments = MaxLogitMoments(4)
    with pytest.raises(UnfittedMomentsError, match="--fit-feature-distance"):
        moments.require_fitted()
    values = [np.array([1.0, 2, 6]), np.array([4.0]), np.array([]), np.array([3.0, 3.0])]
    sums = [torch.tensor([float((v**power).sum()) for v in values]).double() for power in range(3)]
    moments.fit(*sums)
    mean, std = moments.mean, moments.std
    everything = np.concatenate(values)
    torch.testing.assert_close(mean, torch.tensor([3.0] + [everything.mean()] * 3).float())
    expected = torch.tensor([values[0].std(ddof=1)] + [everything.std(ddof=1)] * 3)
    torch.testing.assert_close(std, expected.float())
    with pytest.raises(ValueError, match="found 0 pixels"):
        moments.fit(*torch.zeros(3, 4, dtype=torch.float64))


def test_moments_are_those_of_every_labelled_pixel(tmp_path):
    cfg = build_config(
        "configs/synthetic/effnetlite0_deeplabv3plus_softmax.yaml",
        [
            "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.FEATURE_DISTANCE.FEATURES", [],
            "MODEL.CHANNELS_LAST", False, "INPUT.MIN_SIZE_TEST", 0,
            "TEST.SCORES", ["sml", "energy"], "MODEL.FEATURE_DISTANCE.NUM_IMAGES", 7,
            "DATASETS.SYNTHETIC.NUM_TRAIN", 3, "DATASETS.SYNTHETIC.HEIGHT", 64,
            "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.CACHE_DIR", "", "OUTPUT_DIR", str(tmp_path),
        ],
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    # Some classes are predicted, others are not.
    model.classifier.predictor.weight.data.mul_(100)
    with pytest.raises(UnfittedMomentsError, match=r'"sml" needs .* --fit-feature-distance'):
        model.eval()([{"image": torch.zeros(3, 64, 128)}])
    fit_feature_distance(cfg, model.train())
    assert model.training
    model.eval()

    largest, predicted = [], []
    metadata = MetadataCatalog.get("synthetic_street_train")
    for record in get_records("synthetic_street_train"):
        image = torch.from_numpy(read_image(record, cfg.INPUT.FORMAT).transpose(2, 0, 1).copy())
        with torch.no_grad():
            found = model([{"image": image}])[0]
        logits = found["sem_seg"].double().numpy()
        known = read_label(record, metadata) < CLASSES
        largest.append(logits.max(0)[known])
        predicted.append(logits.argmax(0)[known])
    largest, predicted = np.concatenate(largest), np.concatenate(predicted)
    seen = np.unique(predicted)
    assert 2 <= len(seen) < CLASSES
    mean, std = model.max_logit_moments.mean.numpy(), model.max_logit_moments.std.numpy()
    for label in range(CLASSES):
        own = largest[predicted == label] if label in seen else largest
        np.testing.assert_allclose([mean[label], std[label]], [own.mean(), own.std(ddof=1)], rtol=1e-3)
    best = logits.argmax(0)
    score = found["anomaly_scores"]["sml"].numpy()
    np.testing.assert_allclose(score, -(logits.max(0) - mean[best]) / std[best], rtol=1e-3, atol=1e-3)
