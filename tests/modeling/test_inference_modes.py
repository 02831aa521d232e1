"""Sliding windows, scales, mirrored images and both score resolutions against explicit loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch.nn import functional as F

from gmm_anomaly.engine import EMHook
from gmm_anomaly.modeling import build_backbone, restoration
from gmm_anomaly.modeling.inference import InferenceMode
from gmm_anomaly.modeling.scoring import Scoring
from tests.modeling.conftest import SMALL, batch, config_of

CLASSES = 4
SCORES = {
    "gmm": ["gmm_density", "gmm_likelihood", "max_logit", "entropy"],
    "softmax": ["msp", "energy"],
    "prototype": ["prototype_distance", "msp"],
}
OWN_SCORES = {
    "GMMClassifier": ("gmm_density", lambda got: -got.log_density[0].amax(0)),
    "SoftmaxClassifier": ("msp", lambda got: 1 - got.logits[0].softmax(0).amax(0)),
    "PrototypeClassifier": ("prototype_distance", lambda got: 0.5 - got.logits[0].amax(0) / 20),
}
MODES = {
    "whole": InferenceMode(),
    "windows": InferenceMode(window=(64, 48), stride=(40, 32)),
    "looks": InferenceMode(scales=(0.75, 1.0, 1.5), flip=True),
    "windows and looks": InferenceMode(window=(64, 96), stride=(40, 80), scales=(1.0, 1.25), flip=True),
}


def small(*overrides):
    keys = ["MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.TIMM.OUT_INDICES", [1, 3]]
    return config_of(*SMALL, *keys, *overrides)


@pytest.fixture(scope="module", params=sorted(SCORES))
def model(request):
    torch.manual_seed(0)
    model = build_model(small("MODEL.CLASSIFIER.NAME", request.param))
    if model.bank is not None:
        EMHook(model.bank)
    model.train()(batch((64, 96), classes=CLASSES))
    if model.bank is not None:
        model.bank.update()
    return model.eval()


@pytest.fixture
def look(model):
    """Runs the model under a mode and gives it its own back afterwards."""
    before = model.inference, model.scoring

    def run(mode, inputs, scores=None):
        given = ["logits", "log_density"] if model.classifier.generative else ["logits"]
        model.inference = mode
        model.scoring = Scoring(scores, given=given) if scores else before[1]
        with torch.no_grad():
            return model(inputs)

    yield run
    model.inference, model.scoring = before


def resized(maps, size):
    """Bilinear interpolation of (K, h, w) float64 in plain NumPy, pixel centres aligned."""
    for axis, length in ((1, size[0]), (2, size[1])):
        source = maps.shape[axis]
        at = np.maximum((np.arange(length) + 0.5) * source / length - 0.5, 0)
        low = np.minimum(at.astype(int), source - 1)
        high = np.minimum(low + 1, source - 1)
        share = (at - low).reshape((-1, 1) if axis == 1 else (-1,))
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


def network(model, image, room=(0, 0)):
    """What a normalised (3, H, W) image padded to ``room`` gives, and its padded size."""
    every = max(model.backbone.size_divisibility, 1)
    height, width = (-(-max(lengths) // every) * every for lengths in zip(room, image.shape[1:], strict=True))
    padded = F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))[None]
    with torch.no_grad():
        found = model.classifier(model.decoder(model.backbone(padded)).features)
    return found, (height, width)


def brute_force(model, mode, item, output_size, maps_of, beside=(0, 0)):
    """The mean over looks and windows by explicit loops, of what ``maps_of`` makes of a network's output.

    Whole images of a batch are padded to one size: ``beside`` is the size of the other one.
    """
    normalised = (item["image"].float() - model.pixel_mean) / model.pixel_std
    total, number = 0.0, 0
    for scale in mode.scales:
        for mirrored in [False, True] if mode.flip else [False]:
            size = tuple(int(length * scale + 0.5) for length in item["image"].shape[1:])
            image = torch.from_numpy(resized(normalised.double().numpy(), size)).float()
            image = image.flip(-1) if mirrored else image
            room = (0, 0) if mode.window else tuple(int(length * scale + 0.5) for length in beside)
            window = mode.window or size
            stride = mode.stride or window
            evidence, count = None, np.zeros(size)
            for row in range(max(0, -(-(size[0] - window[0]) // stride[0])) + 1):
                for column in range(max(0, -(-(size[1] - window[1]) // stride[1])) + 1):
                    bottom = min(row * stride[0] + window[0], size[0])
                    right = min(column * stride[1] + window[1], size[1])
                    top, left = max(bottom - window[0], 0), max(right - window[1], 0)
                    found, padded = network(model, image[:, top:bottom, left:right], room)
                    maps = resized(maps_of(found).double().numpy(), padded)
                    evidence = np.zeros((len(maps), *size)) if evidence is None else evidence
                    evidence[:, top:bottom, left:right] += maps[:, : bottom - top, : right - left]
                    count[top:bottom, left:right] += 1
            evidence = evidence / count
            total = total + resized(evidence[:, :, ::-1] if mirrored else evidence, output_size)
            number += 1
    return total / number


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_outputs_are_the_mean_over_windows_and_looks(model, look, mode):
    first, second = batch((70, 90), (101, 83))
    second |= {"height": 57, "width": 121}
    found = look(mode, [first, second])[1]
    expected = brute_force(model, mode, second, (57, 121), lambda got: got.logits[0], beside=(70, 90))
    np.testing.assert_allclose(found["sem_seg"].numpy(), expected, rtol=1e-3, atol=1e-3)
    if model.classifier.generative:
        # Restored before the largest is taken.
        density = brute_force(model, mode, second, (57, 121), lambda got: got.log_density[0], beside=(70, 90))
        score = found["anomaly_scores"]["gmm_density"].numpy()
        np.testing.assert_allclose(score, -density.max(0), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_scores_on_features_are_restored_scores(model, look, mode):
    name, formula = OWN_SCORES[type(model.classifier).__name__]
    item = {**batch((101, 83))[0], "height": 50, "width": 41}
    scores = [name, "max_logit"]
    found = look(dataclasses.replace(mode, score_on="features"), [item], scores)[0]
    expected = brute_force(model, mode, item, (50, 41), lambda got: formula(got)[None])[0]
    np.testing.assert_allclose(found["anomaly_scores"][name].numpy(), expected, rtol=1e-3, atol=2e-3)
    assert torch.equal(found["anomaly_score"], found["anomaly_scores"][name])
    on_logits = look(mode, [item], scores)[0]
    torch.testing.assert_close(found["sem_seg"], on_logits["sem_seg"], rtol=1e-5, atol=1e-5)
    # Minus the largest logit is concave: averaging first can only raise it.
    assert (found["anomaly_scores"]["max_logit"] <= on_logits["anomaly_scores"]["max_logit"] + 1e-4).all()


def test_strips_do_not_show(model, look, monkeypatch):
    mode = MODES["windows and looks"]
    item = {**batch((75, 90))[0], "height": 61, "width": 77}
    names = SCORES[type(model.classifier).__name__.removesuffix("Classifier").lower()]
    at_once = look(mode, [item], names)[0]
    assert list(at_once["anomaly_scores"]) == names
    assert all(score.dtype == torch.float32 for score in at_once["anomaly_scores"].values())
    monkeypatch.setattr(restoration, "STRIP_VALUES", 3 * CLASSES * 77)
    torch.testing.assert_close(look(mode, [item], names)[0], at_once, rtol=1e-5, atol=1e-5)


def test_keys_reach_the_model():
    keys = ["MODEL.CLASSIFIER.NAME", "softmax", "TEST.SLIDING_WINDOW.ENABLED", True, "TEST.AUG.ENABLED", True]
    model = build_model(small(*keys, "TEST.SCORE_ON", "features"))
    assert model.inference == InferenceMode(
        (768, 768), (512, 512), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, score_on="features"
    )
    assert build_model(small("MODEL.CLASSIFIER.NAME", "softmax")).inference == InferenceMode()


def test_windows_that_leave_pixels_out_are_refused():
    keys = ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.STRIDE", [512, 769]]
    with pytest.raises(ValueError, match=r"STRIDE: \[512, 769\] exceeds SIZE.*raise SIZE"):
        InferenceMode.from_config(config_of(*keys))


def test_tensorflows_networks_see_a_picture_of_odd_size_as_training_does(config):
    """Their layers pad by the parity of the size: unpadded, a crop is sampled on another grid."""
    torch.manual_seed(0)
    backbone = build_backbone(config("MODEL.BACKBONE.NAME", "build_timm_backbone")).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        crop = image[..., :33, :63]
        filled = ImageList.from_tensors([*crop], backbone.size_divisibility).tensor
        whole, padded, alone = (backbone(x)["level1"][..., :4, :10] for x in (image, filled, crop))
    torch.testing.assert_close(padded, whole)
    assert (alone - whole).abs().max() > 0.1 * whole.abs().max()
