"""How far a pixel's backbone features lie from those of every known class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import TiedGaussians, UnfittedMixtureError

# A squared Mahalanobis distance of 0 has no logarithm.
SMALLEST = 1e-3


class FeatureDistance(nn.Module):
    """Mahalanobis distances on levels of the backbone, which training for the known classes bends less than
    the embedding: log-distances, standardised on the training set, summed over the levels.

    Everything is fitted after training (``gmm_anomaly.engine.calibration``), nothing here learns by gradient.

    Args:
        shapes: the backbone features to use, by name.
        num_classes: C.
    """

    log_mean: Tensor
    log_std: Tensor
    evidence_mean: Tensor
    evidence_std: Tensor

    def __init__(self, shapes: dict[str, ShapeSpec], num_classes: int) -> None:
        super().__init__()
        self.names = list(shapes)
        self.levels = nn.ModuleDict(
            {name: TiedGaussians(num_classes, shape.channels) for name, shape in shapes.items()}
        )
        # Moments over the training set's labelled pixels: of each level's log-distance, and of the
        # classifier's own evidence, so that a score can add what has different units.
        self.register_buffer("log_mean", torch.zeros(len(shapes)))
        self.register_buffer("log_std", torch.zeros(len(shapes)))
        self.register_buffer("evidence_mean", torch.zeros(()))
        self.register_buffer("evidence_std", torch.zeros(()))

    @property
    def is_fitted(self) -> bool:
        return bool((self.log_std > 0).all() and self.evidence_std > 0)

    def require_fitted(self) -> None:
        """Raise UnfittedMixtureError before calibration."""
        if not self.is_fitted:
            raise UnfittedMixtureError(
                "the distances of backbone features (MODEL.FEATURE_DISTANCE.FEATURES) are not fitted; fit "
                "them with train_net.py --calibrate MODEL.WEIGHTS FILE"
            )

    def log_distance(self, name: str, feature: Tensor) -> Tensor:
        """feature: (B, F, h, w) of the level ``name`` -> (B, h, w) float32 log squared distances."""
        batch, channels, height, width = feature.shape
        pixels = feature.permute(0, 2, 3, 1).reshape(-1, channels)
        distance = self.levels[name].squared_distance(pixels)
        return distance.clamp(min=SMALLEST).log().view(batch, height, width)

    def forward(self, pyramid: dict[str, Tensor]) -> Tensor:
        """pyramid: {name: (B, F, h, w)} -> (B, 1, h', w') float32 at the finest level's resolution, in
        standard deviations, higher = farther.

        Raises:
            UnfittedMixtureError: before calibration.
        """
        self.require_fitted()
        size = max((pyramid[name].shape[-2:] for name in self.names), key=lambda hw: hw[0] * hw[1])
        total = 0
        for index, name in enumerate(self.names):
            standard = (self.log_distance(name, pyramid[name]) - self.log_mean[index]) / self.log_std[index]
            total = total + F.interpolate(standard[:, None], size=size, mode="bilinear", align_corners=False)
        return total


def build_feature_distance(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> FeatureDistance | None:
    """The module that ``MODEL.FEATURE_DISTANCE.FEATURES`` asks for; None for an empty list."""
    names: Sequence[str] = cfg.MODEL.FEATURE_DISTANCE.FEATURES
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(
            "MODEL.FEATURE_DISTANCE.FEATURES: expected some of the backbone's features "
            f"({', '.join(shapes)}), found {', '.join(unknown)}"
        )
    if not names:
        return None
    return FeatureDistance({name: shapes[name] for name in names}, cfg.MODEL.CLASSIFIER.NUM_CLASSES)
