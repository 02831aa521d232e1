"""Decoders: from a backbone's features to pixel features. Importing this package registers them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from ..registry import DECODER_REGISTRY, look_up
from .auxiliary import AuxiliaryHead
from .base import Decoded
from .deeplabv3plus import DeepLabV3PlusDecoder
from .ocrnet import OCRNetDecoder
from .psp import PSPDecoder
from .segformer import SegFormerDecoder
from .separable_deeplabv3plus import SeparableDeepLabV3PlusDecoder
from .upernet import UPerNetDecoder

__all__ = [
    "AuxiliaryHead",
    "Decoded",
    "DeepLabV3PlusDecoder",
    "OCRNetDecoder",
    "PSPDecoder",
    "SegFormerDecoder",
    "SeparableDeepLabV3PlusDecoder",
    "UPerNetDecoder",
    "build_decoder",
]


def build_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The decoder that ``MODEL.DECODER.NAME`` names, on a backbone's ``output_shape()``."""
    return look_up(DECODER_REGISTRY, cfg.MODEL.DECODER.NAME, "MODEL.DECODER.NAME")(cfg, input_shape)
