"""OCRNet's decoder (Yuan et al., ECCV 2020): pixels attend to the classes' regions of the same image."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..registry import DECODER_REGISTRY
from .base import Decoded, Decoder
from .blocks import conv_norm_relu, convolve_parts, resize


def region_representations(features: Tensor, logits: Tensor) -> Tensor:
    """Mean of the features over each class's soft object region (Eq. 2).

    Args:
        features: (B, F, h, w) floating point. logits: (B, C, h, w); a class's weights over the pixels are the
            softmax of its logits over the pixels.

    Returns:
        (B, F, C).
    """
    weights = logits.flatten(2).softmax(dim=2)
    return features.flatten(2) @ weights.to(features.dtype).transpose(1, 2)


class ObjectAttention(nn.Module):
    """Each pixel's mixture of region representations, fused with the pixel's own feature (Eqs. 3 to 5).

    Args:
        channels: of features and output. key_channels: of queries, keys and values. norm: a norm name.
    """

    def __init__(self, channels: int, key_channels: int, norm: str) -> None:
        super().__init__()

        def two_layers() -> nn.Sequential:
            return nn.Sequential(
                conv_norm_relu(channels, key_channels, 1, norm),
                conv_norm_relu(key_channels, key_channels, 1, norm),
            )

        self.key_channels = key_channels
        self.query = two_layers()
        self.key = two_layers()
        self.value = conv_norm_relu(channels, key_channels, 1, norm)
        self.out = conv_norm_relu(key_channels, channels, 1, norm)
        self.fuse = conv_norm_relu(2 * channels, channels, 1, norm)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """features: (B, F, h, w); regions: (B, F, C) -> (B, F, h, w)."""
        regions = regions[..., None]
        query = self.query(features).flatten(2).transpose(1, 2)
        key = self.key(regions).flatten(2)
        value = self.value(regions).flatten(2)
        relation = (query @ key * self.key_channels**-0.5).softmax(dim=2)
        context = value @ relation.to(value.dtype).transpose(1, 2)
        context = self.out(context.unflatten(2, features.shape[-2:]))
        return convolve_parts(self.fuse, (context, features), features.shape[-2:])


@DECODER_REGISTRY.register()
class OCRNetDecoder(Decoder):
    """Object-contextual representations of one feature, by default the last one, or of several put together
    at the finest one's resolution (as over HRNet); the auxiliary head gives the soft object regions.

    Args:
        input_shape, channels, norm: see :class:`Decoder`.
        auxiliary: its logits are the soft object regions, so it works at inference too.
        key_channels: of the attention.
    """

    def build(self, shapes: dict[str, ShapeSpec], channels: int, norm: str, key_channels: int = 256) -> None:
        width = sum(shape.channels for shape in shapes.values())
        self.bottleneck = conv_norm_relu(width, channels, 3, norm)
        self.attention = ObjectAttention(channels, key_channels, norm)

    @staticmethod
    def default(names: list[str]) -> list[str]:
        return names[-1:]

    @staticmethod
    def default_auxiliary(names: list[str], chosen: list[str]) -> list[str]:
        # Over several features the regions come from all of them, as the authors have it; else from the last
        # feature but one.
        return names[-2:][:1] if len(chosen) == 1 else chosen

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        logits = self.auxiliary(features)
        used = [features[name] for name in self.in_features]
        pixels = convolve_parts(self.bottleneck, used, used[0].shape[-2:])
        regions = region_representations(pixels, resize(logits, pixels.shape[-2:]))
        losses = {} if labels is None else self.auxiliary.losses(logits, labels)
        return Decoded(self.attention(pixels, regions), losses)
