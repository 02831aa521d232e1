"""Decoders of a pyramid of features or of pooled cells: PSPNet's (Zhao et al., CVPR 2017), UPerNet's (Xiao et
al., ECCV 2018) and SegFormer's (Xie et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..registry import DECODER_REGISTRY
from .base import Decoder
from .blocks import PyramidPooling, conv_norm_relu, convolve_parts, resize


@DECODER_REGISTRY.register()
class PSPDecoder(Decoder):
    """Pyramid pooling of one feature, at that feature's size; by default of the last one. For the arguments
    see :class:`Decoder`."""

    at_most = 1

    @staticmethod
    def default(names: list[str]) -> list[str]:
        return names[-1:]

    def build(self, shapes: dict[str, ShapeSpec], channels: int, norm: str) -> None:
        (shape,) = shapes.values()
        self.pyramid = PyramidPooling(shape.channels, channels, norm)

    def decode(self, *features: Tensor) -> Tensor:
        return self.pyramid(features[0])


@DECODER_REGISTRY.register()
class UPerNetDecoder(Decoder):
    """Pyramid pooling of the last feature, a top-down path through the others, and a fusion of all levels.

    It takes two features or more, by default all. For the arguments see :class:`Decoder`.
    """

    at_least = 2

    def build(self, shapes: dict[str, ShapeSpec], channels: int, norm: str) -> None:
        *earlier, last = shapes.values()
        self.pyramid = PyramidPooling(last.channels, channels, norm)
        self.lateral = nn.ModuleList(conv_norm_relu(shape.channels, channels, 1, norm) for shape in earlier)
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm) for _ in earlier)
        self.fuse = conv_norm_relu(len(shapes) * channels, channels, 3, norm)

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


@DECODER_REGISTRY.register()
class SegFormerDecoder(Decoder):
    """Each feature projected to the same channels; all, upsampled to the finest, fused by a 1x1 convolution.

    The projections have norm and ReLU, as in MMSegmentation and GMMSeg's code; the paper's are linear. It
    takes all features by default; SegFormer has 256 channels over MiT-B0 and B1, 768 over B2 to B5, and no
    auxiliary head. For the arguments see :class:`Decoder`.
    """

    def build(self, shapes: dict[str, ShapeSpec], channels: int, norm: str) -> None:
        self.project = nn.ModuleList(
            conv_norm_relu(shape.channels, channels, 1, norm) for shape in shapes.values()
        )
        self.fuse = conv_norm_relu(len(shapes) * channels, channels, 1, norm)

    def decode(self, *features: Tensor) -> Tensor:
        projected = (project(feature) for project, feature in zip(self.project, features, strict=True))
        return convolve_parts(self.fuse, projected, features[0].shape[-2:])
