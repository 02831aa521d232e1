"""DeepLabV3+ decoder (Chen et al., ECCV 2018) as MMSegmentation builds it, and with it GMMSeg's code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..norm import usable_norm
from ..registry import DECODER_REGISTRY
from .auxiliary import AuxiliaryHead, auxiliary_losses
from .base import Decoded
from .blocks import conv_norm_relu, convolve_parts, pool_to, resize, separable_conv
from .features import first_and_last, select_features


@DECODER_REGISTRY.register()
class SeparableDeepLabV3PlusDecoder(nn.Module):
    """Atrous spatial pyramid pooling with separable convolutions, refined with one earlier feature.

    Unlike :class:`DeepLabV3PlusDecoder`: a norm after the image pooling, a 3x3 convolution that fuses the
    pyramid, two separable 3x3 convolutions that refine, no dropout inside.

    Args:
        input_shape: the earlier feature and the one to pool, by name.
        aspp_channels: channels of the pyramid's branches and its output.
        aspp_dilations: of the atrous branches.
        project_channels: of the earlier feature's projection.
        channels: output channels.
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        aspp_channels: int = 512,
        aspp_dilations: Sequence[int] = (12, 24, 36),
        project_channels: int = 48,
        channels: int = 512,
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__()
        earlier, last = input_shape.values()
        self.in_features = list(input_shape)
        self.out_channels = channels
        self.out_stride = earlier.stride
        self.image_pool = conv_norm_relu(last.channels, aspp_channels, 1, norm)
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(last.channels, aspp_channels, 1, norm),
                *(
                    separable_conv(last.channels, aspp_channels, norm, dilation=dilation)
                    for dilation in aspp_dilations
                ),
            ]
        )
        self.bottleneck = conv_norm_relu((1 + len(self.branches)) * aspp_channels, aspp_channels, 3, norm)
        self.project = conv_norm_relu(earlier.channels, project_channels, 1, norm)
        self.refine = nn.Sequential(
            separable_conv(aspp_channels + project_channels, channels, norm),
            separable_conv(channels, channels, norm),
        )
        self.auxiliary = auxiliary

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        keys = cfg.MODEL.DECODER
        return {
            "input_shape": select_features(
                input_shape, keys.IN_FEATURES, default=first_and_last(input_shape), at_least=2, at_most=2
            ),
            "aspp_channels": keys.ASPP_CHANNELS,
            "aspp_dilations": keys.ASPP_DILATIONS,
            "project_channels": keys.PROJECT_CHANNELS,
            "channels": keys.CHANNELS,
            "norm": usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            "auxiliary": AuxiliaryHead.from_config(cfg, input_shape),
        }

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        """features: {name: (B, F, h, w)} -> pixel features (B, channels, h', w') at the smaller stride."""
        earlier, last = (features[name] for name in self.in_features)

        def parts():
            yield pool_to(last, 1, self.image_pool)
            for branch in self.branches:
                yield branch(last)

        pooled = convolve_parts(self.bottleneck, parts(), last.shape[-2:])
        skip = self.project(earlier)
        fused = self.refine(torch.cat((resize(pooled, skip.shape[-2:]), skip), dim=1))
        return Decoded(fused, auxiliary_losses(self.auxiliary, features, labels))
