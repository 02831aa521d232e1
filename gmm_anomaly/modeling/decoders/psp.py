"""PSPNet's decoder (Zhao et al., CVPR 2017): pyramid pooling of the last feature."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..norm import usable_norm
from ..registry import DECODER_REGISTRY
from .auxiliary import AuxiliaryHead, auxiliary_losses
from .base import Decoded
from .features import select_features
from .pyramid_pooling import PyramidPooling


@DECODER_REGISTRY.register()
class PSPDecoder(nn.Module):
    """Pyramid pooling of one feature, at that feature's size.

    Args:
        input_shape: the feature, by name.
        channels: output channels, and those of the pyramid's branches.
        pool_bins: cells per side of the pooling grids.
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int = 512,
        pool_bins: Sequence[int] = (1, 2, 3, 6),
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__()
        ((name, shape),) = input_shape.items()
        self.in_features = [name]
        self.out_channels = channels
        self.out_stride = shape.stride
        self.pyramid = PyramidPooling(shape.channels, channels, bins=pool_bins, norm=norm)
        self.auxiliary = auxiliary

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        keys = cfg.MODEL.DECODER
        last = list(input_shape)[-1:]
        return {
            "input_shape": select_features(input_shape, keys.IN_FEATURES, default=last, at_most=1),
            "channels": keys.CHANNELS,
            "pool_bins": keys.POOL_BINS,
            "norm": usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            "auxiliary": AuxiliaryHead.from_config(cfg, input_shape),
        }

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        """features: {name: (B, F, h, w)} -> pixel features (B, channels, h, w)."""
        return Decoded(
            self.pyramid(features[self.in_features[0]]), auxiliary_losses(self.auxiliary, features, labels)
        )
