"""A segmentor without classes: nothing of it is trained, and it only measures distances on its backbone."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from gmm_anomaly.scores import PixelOutputs

from ..decoders.base import Decoder
from ..registry import CLASSIFIER_REGISTRY, DECODER_REGISTRY
from .softmax import PixelClassifier


@DECODER_REGISTRY.register()
class NoDecoder(Decoder):
    """The first of its features as it is."""

    def build(self, shapes: dict[str, ShapeSpec], channels: int, norm: str) -> None:
        self.out_channels = next(iter(shapes.values())).channels

    def decode(self, *features: Tensor) -> Tensor:
        """features: (B, F, h, w) each, from high to low resolution."""
        return features[0]


class NoClassifier(PixelClassifier):
    """One class, everything is of it."""

    def forward(self, features: Tensor) -> PixelOutputs:
        return PixelOutputs(features[:, :1].float() * 0)

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        raise ValueError(
            'MODEL.CLASSIFIER.NAME: "none" has nothing to train; fit a detector with `gmm-anomaly fit`'
        )


@CLASSIFIER_REGISTRY.register()
def none(cfg: CfgNode, in_channels: int) -> NoClassifier:
    return NoClassifier(cfg.MODEL.CLASSIFIER.NUM_CLASSES)
