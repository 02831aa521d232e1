"""What every pixel classifier offers the segmentor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Classified(NamedTuple):
    """Class evidence. logits: (B, C, h, w); log_density: the same shape, in nats, or None; embedding:
    (B, D, h, w), what was compared with the classes, or None."""

    logits: Tensor
    log_density: Tensor | None
    embedding: Tensor | None = None


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

    def forward(self, features: Tensor) -> Classified:
        """features: (B, F, h, w) -> :class:`Classified`."""
        raise NotImplementedError

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """features: (B, F, h, w); labels: (B, H, W) int64, 255 ignored -> named, weighted scalar losses."""
        raise NotImplementedError

    def anomaly_score(self, classified: Classified) -> Tensor:
        """The classifier's own anomaly score, (B, H, W), higher = more anomalous; takes any resolution."""
        raise NotImplementedError
