"""SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021), in the form that GMMSeg's code trains."""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..registry import DECODER_REGISTRY
from .base import AuxiliaryHead, Decoder
from .blocks import conv_norm_relu, convolve_parts


@DECODER_REGISTRY.register()
class SegFormerDecoder(Decoder):
    """Each feature projected to the same channels; all, upsampled to the finest, fused by a 1x1 convolution.

    The projections have norm and ReLU, as in MMSegmentation and GMMSeg's code; the paper's are linear.

    Args:
        input_shape: the features to use, by name, from high to low resolution; by default all.
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
        super().__init__(input_shape, channels, auxiliary)
        self.project = nn.ModuleList(
            conv_norm_relu(shape.channels, channels, 1, norm) for shape in input_shape.values()
        )
        self.fuse = conv_norm_relu(len(input_shape) * channels, channels, 1, norm)

    def decode(self, *features: Tensor) -> Tensor:
        projected = (project(feature) for project, feature in zip(self.project, features, strict=True))
        return convolve_parts(self.fuse, projected, features[0].shape[-2:])
