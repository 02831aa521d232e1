"""What every pixel classifier offers the segmentor, and the discriminative one: one layer and a softmax."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn

from gmm_anomaly.scores import PixelOutputs

from ..losses import pixel_cross_entropy
from ..registry import CLASSIFIER_REGISTRY


class PixelClassifier(nn.Module):
    """Maps pixel features to class evidence, and to losses while training.

    Attributes:
        generative: whether it gives class densities.
        embedding_channels: D of the embedding; None for a classifier that gives none.
    """

    generative = False

    def __init__(self, num_classes: int, embedding_channels: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_channels = embedding_channels

    def forward(self, features: Tensor) -> PixelOutputs:
        """features: (B, F, h, w) -> ``logits`` (B, C, h, w); ``log_density`` and ``embedding`` where it has
        them."""
        raise NotImplementedError

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """features: (B, F, h, w); labels: (B, H, W) int64, 255 ignored -> named, weighted scalar losses."""
        raise NotImplementedError


class SoftmaxClassifier(PixelClassifier):
    """1x1 convolution to class logits.

    Args:
        in_channels: channels of the pixel features.
        num_classes: C.
        dropout: rate of channel dropout before it.
        loss_average: see :func:`pixel_cross_entropy`.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, dropout: float = 0.1, loss_average: str = "valid"
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(in_channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)
        self.loss_average = loss_average

    def forward(self, features: Tensor) -> PixelOutputs:
        return PixelOutputs(self.predictor(self.dropout(features)).float(), embedding=features)

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss_ce": pixel_cross_entropy(self(features).logits, labels, average=self.loss_average)}


@CLASSIFIER_REGISTRY.register()
def softmax(cfg: CfgNode, in_channels: int) -> SoftmaxClassifier:
    keys = cfg.MODEL.CLASSIFIER
    return SoftmaxClassifier(
        in_channels, keys.NUM_CLASSES, dropout=keys.DROPOUT, loss_average=keys.LOSS_AVERAGE
    )
