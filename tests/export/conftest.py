"""Small trained-like segmentors behind a predictor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from torch import nn

from gmm_anomaly import AnomalyPredictor
from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.data.streets.datasets import StreetSplit
from gmm_anomaly.modeling.classifiers import SoftmaxClassifier

CLASSES = 4


@BACKBONE_REGISTRY.register()
class FourStrides(Backbone):
    """A convolution for each stride from 4 to 32."""

    def __init__(self, cfg, input_shape) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Conv2d(*channels, kernel_size=stride + 1, stride=stride, padding=stride // 2)
            for channels, stride in zip(((3, 8), (8, 8), (8, 8), (8, 8)), (4, 2, 2, 2), strict=True)
        )

    def forward(self, x):
        features = {}
        for index, step in enumerate(self.steps):
            x = step(x).relu()
            features[f"s{index}"] = x
        return features

    def output_shape(self):
        return {f"s{index}": ShapeSpec(channels=8, stride=4 * 2**index) for index in range(4)}

    @property
    def size_divisibility(self):
        return 32


def tiny_model(*overrides, score="gmm_density"):
    """Random weights, statistics and mixtures: what was trained does not matter to an export."""
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.BACKBONE.NAME", "FourStrides",
        "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.BACKBONE.WEIGHTS", "", "TEST.SCORES", [score],
        "MODEL.GMM.NUM_COMPONENTS", 3, "MODEL.GMM.EMBED_DIM", 8, "MODEL.GMM.MEMORY_SIZE", 50,
        "MODEL.GMM.WARM_START_FEATURES", 40,
        "MODEL.DECODER.CHANNELS", 12, "MODEL.DECODER.AUX_CHANNELS", 8,
        "MODEL.DECODER.ASPP_DILATIONS", [1, 2, 3], *overrides,
    ])  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, SoftmaxClassifier):
                # It starts with logits that hardly differ.
                module.predictor.weight.mul_(50)
        if model.bank is not None:
            model.bank.scales.uniform_(0.3, 1.0)
            model.bank.fitted.fill_(True)
        if model.feature_distance is not None:
            for level in model.feature_distance.levels.values():
                level.whitening.normal_()
                level.whitened_means.normal_()
                level.seen.fill_(True)
            model.feature_distance.log_mean.normal_()
            model.feature_distance.log_std.uniform_(0.5, 1.5)
            model.feature_distance.hybrid_moments[1].fill_(2.0)
        if model.max_logit_moments is not None:
            model.max_logit_moments.mean.normal_()
            model.max_logit_moments.std.uniform_(0.5, 1.5)
    return model


def tiny_predictor(*overrides, score="gmm_density", model=None, **options):
    model = tiny_model(*overrides, score=score) if model is None else model
    names = [f"class {index}" for index in range(CLASSES)]
    colors = [(index, 2 * index, 255 - index) for index in range(CLASSES)]
    options = {"class_names": names, "class_colors": colors} | options
    return AnomalyPredictor(model, score, **options)


@pytest.fixture(scope="session")
def tiny():
    """``model(*overrides, score=...)`` and ``predictor(*overrides, score=..., model=...)``."""
    return SimpleNamespace(model=tiny_model, predictor=tiny_predictor)


@pytest.fixture(scope="session")
def streets():
    """Two images of different sizes."""
    return [
        np.ascontiguousarray(StreetSplit("check", 2, 1, height, width, anomalies=True)[index][0])
        for index, (height, width) in enumerate([(70, 131), (64, 150)])
    ]
