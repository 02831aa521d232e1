"""Sliding windows, scales, mirrored images and both score resolutions against explicit loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from torch import nn
from torch.nn import functional as F

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine import EMHook
from gmm_anomaly.modeling import AnomalySegmentor, SoftmaxClassifier, restoration
from gmm_anomaly.modeling.decoders.base import Decoded
from gmm_anomaly.modeling.inference import InferenceMode, window_grid
from gmm_anomaly.modeling.restoration import interpolate_rows, source_rows
from gmm_anomaly.modeling.scoring import Scoring

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
    "windows": InferenceMode(window=(64, 48), stride=(40, 32)),
    "looks": InferenceMode(scales=(0.75, 1.0, 1.5), flip=True),
    "windows and looks": InferenceMode(window=(64, 96), stride=(40, 80), scales=(1.0, 1.25), flip=True),
}


def config(*overrides):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    tiny = [
        "MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.GMM.NUM_COMPONENTS", 2,
        "MODEL.GMM.EMBED_DIM", 8, "MODEL.GMM.MEMORY_SIZE", 50, "MODEL.GMM.WARM_START_FEATURES", 40,
        "MODEL.DECODER.CHANNELS", 16,
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0",
        "MODEL.TIMM.OUT_INDICES", [1, 3],
    ]  # fmt: skip
    cfg.merge_from_list([*tiny, *overrides])
    return cfg


def images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)} for size in sizes
    ]


@pytest.fixture(scope="module", params=sorted(SCORES))
def model(request):
    torch.manual_seed(0)
    model = build_model(config("MODEL.CLASSIFIER.NAME", request.param))
    labelled = [{**item, "sem_seg": torch.randint(0, CLASSES, (64, 96))} for item in images((64, 96))]
    if model.bank is not None:
        EMHook(model.bank)
    model.train()(labelled)
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
    first, second = images((70, 90), (101, 83))
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
    item = {**images((101, 83))[0], "height": 50, "width": 41}
    scores = [name, "max_logit"]
    found = look(dataclasses.replace(mode, score_on="features"), [item], scores)[0]
    expected = brute_force(model, mode, item, (50, 41), lambda got: formula(got)[None])[0]
    np.testing.assert_allclose(found["anomaly_scores"][name].numpy(), expected, rtol=1e-3, atol=2e-3)
    assert torch.equal(found["anomaly_score"], found["anomaly_scores"][name])
    on_logits = look(mode, [item], scores)[0]
    torch.testing.assert_close(found["sem_seg"], on_logits["sem_seg"], rtol=1e-5, atol=1e-5)
    # Minus the largest logit is concave: averaging first can only raise it.
    assert (found["anomaly_scores"]["max_logit"] <= on_logits["anomaly_scores"]["max_logit"] + 1e-4).all()


@pytest.mark.parametrize("score_on", ["logits", "features"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_classifier_gives_its_scores_in_every_mode(model, look, mode, score_on):
    mode = dataclasses.replace(mode, score_on=score_on)
    names = SCORES[type(model.classifier).__name__.removesuffix("Classifier").lower()]
    item = images((75, 90))[0]
    result = look(mode, [item], names)[0]
    assert list(result["anomaly_scores"]) == names
    assert torch.equal(result["anomaly_score"], result["anomaly_scores"][names[0]])
    for score in result["anomaly_scores"].values():
        assert score.shape == (75, 90) and score.dtype == torch.float32 and bool(score.isfinite().all())
    own = look(mode, [item])[0]
    torch.testing.assert_close(own["sem_seg"], result["sem_seg"])
    # Each classifier's own score is the first of the list.
    torch.testing.assert_close(own["anomaly_score"], result["anomaly_score"], rtol=1e-4, atol=1e-5)


def test_one_window_over_the_image_is_the_whole_image(model, look):
    inputs = [{**images((70, 90))[0], "height": 80, "width": 60}]
    whole = look(InferenceMode(), inputs)[0]
    windowed = look(InferenceMode(window=(200, 100), stride=(50, 50)), inputs)[0]
    assert torch.equal(whole["sem_seg"], windowed["sem_seg"])
    assert torch.equal(whole["anomaly_score"], windowed["anomaly_score"])


def test_strips_do_not_show(model, look, monkeypatch):
    mode = MODES["windows and looks"]
    item = {**images((75, 90))[0], "height": 61, "width": 77}
    names = SCORES[type(model.classifier).__name__.removesuffix("Classifier").lower()]
    at_once = look(mode, [item], names)[0]
    monkeypatch.setattr(restoration, "STRIP_VALUES", 3 * CLASSES * 77)
    torch.testing.assert_close(look(mode, [item], names)[0], at_once, rtol=1e-5, atol=1e-5)


def test_whole_image_is_interpolated_as_torch_does(model, look):
    item = {**images((70, 90))[0], "height": 101, "width": 57}
    result = look(InferenceMode(), [item])[0]
    found, padded = network(model, (item["image"].float() - model.pixel_mean) / model.pixel_std)
    full = F.interpolate(found.logits, padded, mode="bilinear")[..., :70, :90]
    full = F.interpolate(full, (101, 57), mode="bilinear")[0]
    torch.testing.assert_close(result["sem_seg"], full, rtol=1e-4, atol=1e-4)


class Pixelwise(Backbone):
    """Features that are the pixels themselves."""

    size_divisibility = 1

    def forward(self, image):
        return {"pixels": image}

    def output_shape(self):
        return {"pixels": ShapeSpec(channels=3, stride=1)}


class Unchanged(nn.Module):
    def forward(self, features, labels=None):
        return Decoded(features["pixels"], {})


def pixelwise_model(**options):
    torch.manual_seed(0)
    return AnomalySegmentor(
        backbone=Pixelwise(),
        decoder=Unchanged(),
        classifier=SoftmaxClassifier(3, CLASSES),
        pixel_mean=[100.0] * 3,
        pixel_std=[10.0] * 3,
        inference=InferenceMode(**options),
        scores=["msp", "max_logit"],
    ).eval()


@torch.no_grad()
def test_a_model_of_single_pixels_is_the_same_in_windows_mirrored_and_on_features():
    inputs = images((37, 53))
    expected = pixelwise_model()(inputs)[0]
    for options in (
        {"flip": True},
        {"window": (16, 20), "stride": (10, 13)},
        {"window": (16, 20), "stride": (10, 13), "flip": True},
    ):
        found = pixelwise_model(**options)(inputs)[0]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    on_features = pixelwise_model(score_on="features")(inputs)[0]
    assert torch.equal(on_features["anomaly_score"], expected["anomaly_score"])
    assert torch.equal(on_features["sem_seg"], expected["sem_seg"])


def test_linear_scores_do_not_depend_on_where_they_are_computed(model, look):
    found = []
    for score_on in ("logits", "features"):
        model.inference = dataclasses.replace(MODES["windows and looks"], score_on=score_on)
        item = {**images((75, 90))[0], "height": 60, "width": 99}
        with torch.no_grad():
            found += [model.infer([item], lambda part: part.logits.mean(-3, keepdim=True))[0][1]]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "source, size", [((5, 7), (20, 28)), ((9, 4), (13, 31)), ((8, 8), (3, 5)), ((6, 5), (6, 9))]
)
def test_rows_are_those_of_the_whole_interpolation(source, size):
    maps = torch.randn(3, *source)
    whole = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    for start in range(0, size[0], 3):
        rows = range(start, min(start + 3, size[0]))
        torch.testing.assert_close(interpolate_rows(maps, size, rows), whole[:, rows.start : rows.stop])
        needed = source_rows(rows, source[0], size[0])
        part = maps[:, needed.start : needed.stop]
        strip = interpolate_rows(part, size, rows, source_height=source[0], first=needed.start)
        torch.testing.assert_close(strip, whole[:, rows.start : rows.stop])
        outside = maps.clone()
        outside[:, needed.start : needed.stop] = 0
        inside = F.interpolate(outside[None], size, mode="bilinear", align_corners=False)[0]
        assert not inside[:, rows.start : rows.stop].any(), (
            "a row depends on one that is not among those needed"
        )


def test_windows_cover_the_image_as_published():
    # Cityscapes, 768 x 768 every 512: the last window of each row and column is shifted back.
    grid = window_grid((1024, 2048), (768, 768), (512, 512))
    assert [(w.top, w.left) for w in grid] == [(t, x) for t in (0, 256) for x in (0, 512, 1024, 1280)]
    assert {(w.height, w.width) for w in grid} == {(768, 768)}
    assert window_grid((100, 2000), (768, 1000), (512, 500)) == [
        (0, 0, 100, 1000), (0, 500, 100, 1000), (0, 1000, 100, 1000),
    ]  # fmt: skip
    assert window_grid((768, 768), (768, 768), (512, 512)) == [(0, 0, 768, 768)]
    seen = np.zeros((61, 83), bool)
    for w in window_grid(seen.shape, (17, 23), (17, 11)):
        assert w.top + w.height <= 61 and w.left + w.width <= 83
        seen[w.top : w.top + w.height, w.left : w.left + w.width] = True
    assert seen.all()


def test_keys_reach_the_model():
    keys = ["MODEL.CLASSIFIER.NAME", "softmax", "TEST.SLIDING_WINDOW.ENABLED", True, "TEST.AUG.ENABLED", True]
    model = build_model(config(*keys, "TEST.SCORE_ON", "features"))
    assert model.inference == InferenceMode(
        (768, 768), (512, 512), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, score_on="features"
    )
    assert build_model(config("MODEL.CLASSIFIER.NAME", "softmax")).inference == InferenceMode()


def test_passes_through_the_network_are_counted(model, look, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        model, "_tiles", lambda images, run=model._tiles: shapes.append(images[0].shape[1:]) or run(images)
    )
    mode = MODES["windows and looks"]
    look(mode, images((75, 110)))
    # 75 x 110: 2 x 2 windows; 94 x 138: 2 x 2 windows; each twice.
    assert len(shapes) == mode.passes((75, 110)) == 16 and set(shapes) == {(64, 96)}


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["TEST.SCORE_ON", "pixels"], 'TEST.SCORE_ON: expected "logits" or "features", found .pixels'),
        (["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", []], r"TEST.AUG.SCALES: expected .* found \[\]"),
        (["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [1.0, -2.0]], r"TEST.AUG.SCALES: .*-2"),
        (
            ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.SIZE", [300]],
            r"SLIDING_WINDOW.SIZE: expected a positive height and width, found \[300\]",
        ),
        (
            ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.STRIDE", [512, 0]],
            r"SLIDING_WINDOW.STRIDE: expected a positive height and width, found \[512, 0\]",
        ),
        (
            ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.STRIDE", [512, 769]],
            r"STRIDE: \[512, 769\] exceeds SIZE \[768, 768\].*raise SIZE",
        ),
    ],
)
def test_wrong_keys_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        InferenceMode.from_config(config(*overrides))
