"""Pixel classifiers. Importing this package registers them."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..registry import CLASSIFIER_REGISTRY, look_up
from . import none as _none  # noqa: F401  (registration)
from .gmm import GMMClassifier
from .prototype import PrototypeClassifier, RunningMeanPrototypes, UnfittedPrototypesError
from .softmax import PixelClassifier, SoftmaxClassifier

__all__ = [
    "GMMClassifier",
    "PixelClassifier",
    "PrototypeClassifier",
    "RunningMeanPrototypes",
    "SoftmaxClassifier",
    "UnfittedPrototypesError",
    "build_classifier",
]


def build_classifier(cfg: CfgNode, in_channels: int) -> PixelClassifier:
    """The classifier that ``MODEL.CLASSIFIER.NAME`` names."""
    return look_up(CLASSIFIER_REGISTRY, cfg.MODEL.CLASSIFIER.NAME, "MODEL.CLASSIFIER.NAME")(cfg, in_channels)
