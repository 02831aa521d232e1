"""DeepLabV3+ decoder (Chen et al., ECCV 2018): Detectron2's own, without its predictor."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab.semantic_seg import DeepLabV3PlusHead
from torch import Tensor, nn

from ..norm import usable_norm
from ..registry import DECODER_REGISTRY
from .auxiliary import AuxiliaryHead, auxiliary_losses
from .base import Decoded
from .features import first_and_last, select_features


@DECODER_REGISTRY.register()
class DeepLabV3PlusDecoder(nn.Module):
    """Atrous spatial pyramid pooling on the last feature, fused with the earlier ones.

    Args:
        input_shape: the features to use, by name; two or more. The one with the largest stride is pooled.
        aspp_channels: channels of the pyramid's branches. aspp_dilations: three dilations. aspp_dropout:
            rate.
        project_channels: channels of each earlier feature's projection.
        channels: output channels.
        depthwise_separable: use depthwise separable convolutions.
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        aspp_channels: int = 256,
        aspp_dilations: Sequence[int] = (6, 12, 18),
        aspp_dropout: float = 0.1,
        project_channels: int = 48,
        channels: int = 256,
        depthwise_separable: bool = False,
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__()
        earlier = len(input_shape) - 1
        self.in_features = list(input_shape)
        self.out_channels = channels
        self.out_stride = min(shape.stride for shape in input_shape.values())
        self.head = DeepLabV3PlusHead(
            input_shape,
            project_channels=[project_channels] * earlier,
            aspp_dilations=list(aspp_dilations),
            aspp_dropout=aspp_dropout,
            decoder_channels=[channels] * earlier + [aspp_channels],
            common_stride=self.out_stride,
            norm=norm,
            # Whole-image pooling: any training and test size.
            train_size=None,
            num_classes=None,
            use_depthwise_separable_conv=depthwise_separable,
        )
        self.auxiliary = auxiliary

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        keys = cfg.MODEL.DECODER
        return {
            "input_shape": select_features(
                input_shape, keys.IN_FEATURES, default=first_and_last(input_shape), at_least=2
            ),
            "aspp_channels": keys.ASPP_CHANNELS,
            "aspp_dilations": keys.ASPP_DILATIONS,
            "aspp_dropout": keys.ASPP_DROPOUT,
            "project_channels": keys.PROJECT_CHANNELS,
            "channels": keys.CHANNELS,
            "depthwise_separable": keys.DEPTHWISE_SEPARABLE,
            "norm": usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            "auxiliary": AuxiliaryHead.from_config(cfg, input_shape),
        }

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        """features: {name: (B, F, h, w)} -> pixel features (B, channels, h', w') at the smallest stride."""
        return Decoded(
            self.head.layers({name: features[name] for name in self.in_features}),
            auxiliary_losses(self.auxiliary, features, labels),
        )
