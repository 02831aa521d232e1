"""What every pixel classifier offers the segmentor."""

from __future__ import annotations

from torch import Tensor, nn

from gmm_anomaly.scores import PixelOutputs


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
