"""Windows on an image, large ones by themselves, and strips of rows, on a network of single pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torch.nn import functional as F

from gmm_anomaly.modeling import AnomalySegmentor, SoftmaxClassifier
from gmm_anomaly.modeling.decoders.base import Decoded
from gmm_anomaly.modeling.inference import InferenceMode, scaled_size, window_grid
from gmm_anomaly.modeling.restoration import interpolate_rows, source_rows
from gmm_anomaly.modeling.scoring import Scoring
from tests.modeling.conftest import batch

CLASSES = 4


class Pixelwise(Backbone):
    """Features that are the pixels themselves; remembers the shapes it saw."""

    size_divisibility = 1

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
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
        scoring=Scoring(["msp", "max_logit"], given=["logits"]),
    ).eval()


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


@torch.no_grad()
def test_large_images_are_looked_at_in_windows():
    inputs = batch((800, 1000), (60, 50))
    whole, tiled = (pixelwise_model(max_whole_pixels=limit) for limit in (0, 800 * 1000 - 1))
    expected, found = whole(inputs), tiled(inputs)
    assert whole.backbone.seen == [(2, 3, 800, 1000)]
    assert tiled.backbone.seen == [(1, 3, 768, 768)] * 4 + [(1, 3, 60, 50)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other["sem_seg"], one["sem_seg"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(other["anomaly_score"], one["anomaly_score"], rtol=1e-5, atol=1e-5)
    exactly = pixelwise_model(max_whole_pixels=800 * 1000)
    exactly(inputs[:1])
    assert exactly.backbone.seen == [(1, 3, 800, 1000)]


def test_images_of_the_benchmarks_stay_whole_at_every_scale_by_default(config):
    mode = InferenceMode.from_config(config("TEST.AUG.ENABLED", True))
    assert max(mode.scales) == 1.75
    for size in ((1024, 2048), (1280, 1920), (1080, 1920)):
        for scale in mode.scales:
            assert len(mode.windows(scaled_size(size, scale))) == 1
    assert mode.windows((10_000, 10_000)) == window_grid((10_000, 10_000), (768, 768), (512, 512))
    # Windows that are asked for stay as they are.
    mode = InferenceMode(window=(500, 600), stride=(500, 600), max_whole_pixels=10)
    assert mode.windows((1000, 1200)) == window_grid((1000, 1200), (500, 600), (500, 600))
