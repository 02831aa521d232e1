"""Images too large to be looked at whole go through the network in windows, by themselves."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn

from gmm_anomaly.engine import build_config
from gmm_anomaly.modeling import AnomalySegmentor, SoftmaxClassifier
from gmm_anomaly.modeling.decoders.base import Decoded
from gmm_anomaly.modeling.inference import InferenceMode, scaled_size, window_grid


class Pixelwise(Backbone):
    """Features that are the pixels themselves; remembers the shapes it saw."""

    size_divisibility = 1

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        return {"pixels": image}

    def output_shape(self):
        return {"pixels": ShapeSpec(channels=3, stride=1)}


class Unchanged(nn.Module):
    def forward(self, features, labels=None):
        return Decoded(features["pixels"], {})


def model(max_whole_pixels: int) -> AnomalySegmentor:
    torch.manual_seed(0)
    return AnomalySegmentor(
        backbone=Pixelwise(),
        decoder=Unchanged(),
        classifier=SoftmaxClassifier(3, 2),
        pixel_mean=[100.0] * 3,
        pixel_std=[10.0] * 3,
        inference=InferenceMode(max_whole_pixels=max_whole_pixels),
    ).eval()


@torch.no_grad()
def test_large_images_are_looked_at_in_windows():
    inputs = [
        {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)} for size in ((800, 1000), (60, 50))
    ]
    whole, tiled = model(0), model(800 * 1000 - 1)
    expected, found = whole(inputs), tiled(inputs)
    assert whole.backbone.seen == [(2, 3, 800, 1000)]
    assert tiled.backbone.seen == [(1, 3, 768, 768)] * 4 + [(1, 3, 60, 50)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other["sem_seg"], one["sem_seg"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(other["anomaly_score"], one["anomaly_score"], rtol=1e-5, atol=1e-5)
    exactly = model(800 * 1000)
    exactly(inputs[:1])
    assert exactly.backbone.seen == [(1, 3, 800, 1000)]


def test_images_of_the_benchmarks_stay_whole_at_every_scale_by_default():
    mode = InferenceMode.from_config(build_config("", ["TEST.AUG.ENABLED", True, "MODEL.DEVICE", "cpu"]))
    assert max(mode.scales) == 1.75
    for size in ((1024, 2048), (1280, 1920), (1080, 1920)):
        for scale in mode.scales:
            assert len(mode.windows(scaled_size(size, scale))) == 1
    largest = (10_000, 10_000)
    assert mode.windows(largest) == window_grid(largest, (768, 768), (512, 512))


def test_windows_that_are_asked_for_stay_as_they_are():
    mode = InferenceMode(window=(500, 600), stride=(500, 600), max_whole_pixels=10)
    assert mode.windows((1000, 1200)) == window_grid((1000, 1200), (500, 600), (500, 600))


def test_a_negative_limit_is_named():
    with pytest.raises(ValueError, match="TEST.MAX_WHOLE_PIXELS: expected 0 or more, found -1"):
        InferenceMode(max_whole_pixels=-1)
