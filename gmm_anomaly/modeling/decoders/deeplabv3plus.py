"""DeepLabV3+ decoders (Chen et al., ECCV 2018): Detectron2's, and MMSegmentation's, which GMMSeg uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab.semantic_seg import DeepLabV3PlusHead
from torch import Tensor, nn

from ..registry import DECODER_REGISTRY
from .base import Decoder
from .blocks import PooledBranch, conv_norm_relu, convolve_parts, resize, separable_conv

# Channels to which an earlier feature is projected (section 4.1).
PROJECTED = 48


class _DeepLabV3PlusDecoder(Decoder):
    """Two features at least, by default the first and the last one, and dilations."""

    at_least = 2

    @staticmethod
    def default(names: list[str]) -> list[str]:
        return [names[0], names[-1]]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return super().from_config(cfg, input_shape) | {"dilations": cfg.MODEL.DECODER.ASPP_DILATIONS}


@DECODER_REGISTRY.register()
class DeepLabV3PlusDecoder(_DeepLabV3PlusDecoder):
    """Atrous spatial pyramid pooling on the last feature, fused with the earlier ones: Detectron2's layers,
    with depthwise separable convolutions, without the predictor.

    Args:
        input_shape, channels, norm, auxiliary: see :class:`Decoder`. Two features or more; the one with the
            largest stride is pooled.
        dilations: of the three atrous branches.
    """

    def build(
        self, shapes: dict[str, ShapeSpec], channels: int, norm: str, dilations: Sequence[int] = (6, 12, 18)
    ) -> None:
        earlier = len(shapes) - 1
        self.head = DeepLabV3PlusHead(
            shapes,
            project_channels=[PROJECTED] * earlier,
            aspp_dilations=list(dilations),
            aspp_dropout=0.1,
            decoder_channels=[channels] * len(shapes),
            common_stride=self.out_stride,
            norm=norm,
            # Whole-image pooling: any training and test size.
            train_size=None,
            num_classes=None,
            use_depthwise_separable_conv=True,
        )

    def decode(self, *features: Tensor) -> Tensor:
        return self.head.layers(dict(zip(self.in_features, features, strict=True)))


@DECODER_REGISTRY.register()
class SeparableDeepLabV3PlusDecoder(_DeepLabV3PlusDecoder):
    """Atrous spatial pyramid pooling with separable convolutions, refined with one earlier feature.

    Unlike :class:`DeepLabV3PlusDecoder`: a norm after the image pooling, a 3x3 convolution that fuses the
    pyramid, two separable 3x3 convolutions that refine, no dropout inside.

    Args:
        input_shape, channels, norm, auxiliary: see :class:`Decoder`; an earlier feature and the one to pool.
        dilations: of the atrous branches.
    """

    at_most = 2

    def build(
        self, shapes: dict[str, ShapeSpec], channels: int, norm: str, dilations: Sequence[int] = (12, 24, 36)
    ) -> None:
        earlier, last = (shape.channels for shape in shapes.values())
        self.image_pool = PooledBranch(last, channels, 1, norm)
        self.branches = nn.ModuleList([conv_norm_relu(last, channels, 1, norm)])
        self.branches += [separable_conv(last, channels, norm, dilation=dilation) for dilation in dilations]
        self.bottleneck = conv_norm_relu((1 + len(self.branches)) * channels, channels, 3, norm)
        self.project = conv_norm_relu(earlier, PROJECTED, 1, norm)
        self.refine = nn.Sequential(
            separable_conv(channels + PROJECTED, channels, norm),
            separable_conv(channels, channels, norm),
        )

    def decode(self, *features: Tensor) -> Tensor:
        earlier, last = features

        def parts() -> Iterator[Tensor]:
            yield self.image_pool(last)
            for branch in self.branches:
                yield branch(last)

        pooled = convolve_parts(self.bottleneck, parts(), last.shape[-2:])
        skip = self.project(earlier)
        return self.refine(torch.cat((resize(pooled, skip.shape[-2:]), skip), dim=1))
