"""Decoders with pyramid pooling: PSPNet's (Zhao et al., CVPR 2017) and UPerNet's (Xiao et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..registry import DECODER_REGISTRY
from .base import AuxiliaryHead, Decoder
from .blocks import PyramidPooling, conv_norm_relu, convolve_parts, resize


@DECODER_REGISTRY.register()
class PSPDecoder(Decoder):
    """Pyramid pooling of one feature, at that feature's size; by default of the last one.

    Args:
        input_shape: the feature, by name.
        channels: output channels, and those of the pyramid's branches.
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own.
    """

    at_most = 1

    @staticmethod
    def default(names: list[str]) -> list[str]:
        return names[-1:]

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int = 512,
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__(input_shape, channels, auxiliary)
        (shape,) = input_shape.values()
        self.pyramid = PyramidPooling(shape.channels, channels, norm)

    def decode(self, *features: Tensor) -> Tensor:
        return self.pyramid(features[0])


@DECODER_REGISTRY.register()
class UPerNetDecoder(Decoder):
    """Pyramid pooling of the last feature, a top-down path through the others, and a fusion of all levels.

    Args:
        input_shape: two features or more, by name, from high to low resolution; by default all.
        channels: of every level and of the output.
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own.
    """

    at_least = 2

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int = 512,
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__(input_shape, channels, auxiliary)
        *earlier, last = input_shape.values()
        self.pyramid = PyramidPooling(last.channels, channels, norm)
        self.lateral = nn.ModuleList(conv_norm_relu(shape.channels, channels, 1, norm) for shape in earlier)
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm) for _ in earlier)
        self.fuse = conv_norm_relu(len(input_shape) * channels, channels, 3, norm)

    def decode(self, *features: Tensor) -> Tensor:
        *earlier, last = features
        levels = [self.pyramid(last)]
        for lateral, feature in zip(reversed(self.lateral), reversed(earlier), strict=True):
            levels.insert(0, lateral(feature) + resize(levels[0], feature.shape[-2:]))

        def parts() -> Iterator[Tensor]:
            for smooth, level in zip(self.smooth, levels[:-1], strict=True):
                yield smooth(level)
            yield levels[-1]

        return convolve_parts(self.fuse, parts(), levels[0].shape[-2:])
