"""SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021), in the form that GMMSeg's code trains."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..norm import usable_norm
from ..registry import DECODER_REGISTRY
from .auxiliary import AuxiliaryHead, auxiliary_losses
from .base import Decoded
from .blocks import conv_norm_relu, convolve_parts
from .features import select_features


@DECODER_REGISTRY.register()
class SegFormerDecoder(nn.Module):
    """Each feature projected to the same channels; all, upsampled to the finest, fused by a 1x1 convolution.

    The projections have norm and ReLU, as in MMSegmentation and GMMSeg's code; the paper's are linear.

    Args:
        input_shape: the features to use, by name, from high to low resolution.
        channels: of the projections and the output (256 for MiT-B0 and B1, 768 for B2 to B5).
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own; SegFormer has none.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int = 256,
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = list(input_shape)
        self.out_channels = channels
        self.out_stride = input_shape[self.in_features[0]].stride
        self.project = nn.ModuleList(
            conv_norm_relu(shape.channels, channels, 1, norm) for shape in input_shape.values()
        )
        self.fuse = conv_norm_relu(len(input_shape) * channels, channels, 1, norm)
        self.auxiliary = auxiliary

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        keys = cfg.MODEL.DECODER
        return {
            "input_shape": select_features(input_shape, keys.IN_FEATURES, default=list(input_shape)),
            "channels": keys.CHANNELS,
            "norm": usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            "auxiliary": AuxiliaryHead.from_config(cfg, input_shape),
        }

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        """features: {name: (B, F, h, w)} -> pixel features (B, channels, h', w') at the smallest stride."""
        chosen = [features[name] for name in self.in_features]
        projected = (project(feature) for project, feature in zip(self.project, chosen, strict=True))
        fused = convolve_parts(self.fuse, projected, chosen[0].shape[-2:])
        return Decoded(fused, auxiliary_losses(self.auxiliary, features, labels))
