"""UPerNet's decoder (Xiao et al., ECCV 2018): pyramid pooling on top of a feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..norm import usable_norm
from ..registry import DECODER_REGISTRY
from .auxiliary import AuxiliaryHead, auxiliary_losses
from .base import Decoded
from .blocks import conv_norm_relu, convolve_parts, resize
from .features import select_features
from .pyramid_pooling import PyramidPooling


@DECODER_REGISTRY.register()
class UPerNetDecoder(nn.Module):
    """Pyramid pooling of the last feature, a top-down path through the others, and a fusion of all levels.

    Args:
        input_shape: two features or more, by name, from high to low resolution.
        channels: of every level and of the output.
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
        *earlier, last = input_shape.values()
        self.in_features = list(input_shape)
        self.out_channels = channels
        self.out_stride = earlier[0].stride
        self.pyramid = PyramidPooling(last.channels, channels, bins=pool_bins, norm=norm)
        self.lateral = nn.ModuleList(conv_norm_relu(shape.channels, channels, 1, norm) for shape in earlier)
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm) for _ in earlier)
        self.fuse = conv_norm_relu(len(input_shape) * channels, channels, 3, norm)
        self.auxiliary = auxiliary

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        keys = cfg.MODEL.DECODER
        return {
            "input_shape": select_features(
                input_shape, keys.IN_FEATURES, default=list(input_shape), at_least=2
            ),
            "channels": keys.CHANNELS,
            "pool_bins": keys.POOL_BINS,
            "norm": usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            "auxiliary": AuxiliaryHead.from_config(cfg, input_shape),
        }

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        """features: {name: (B, F, h, w)} -> pixel features (B, channels, h', w') at the smallest stride."""
        *earlier, last = (features[name] for name in self.in_features)
        levels = [self.pyramid(last)]
        for lateral, feature in zip(reversed(self.lateral), reversed(earlier), strict=True):
            levels.insert(0, lateral(feature) + resize(levels[0], feature.shape[-2:]))

        def parts():
            for smooth, level in zip(self.smooth, levels[:-1], strict=True):
                yield smooth(level)
            yield levels[-1]

        fused = convolve_parts(self.fuse, parts(), levels[0].shape[-2:])
        return Decoded(fused, auxiliary_losses(self.auxiliary, features, labels))
