"""Decoders: from a backbone's features to pixel features. Importing this package registers them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from ..registry import DECODER_REGISTRY, look_up
from .base import AuxiliaryHead, Decoded, Decoder
from .deeplabv3plus import DeepLabV3PlusDecoder, SeparableDeepLabV3PlusDecoder
from .ocrnet import OCRNetDecoder
from .pyramid import PSPDecoder, SegFormerDecoder, UPerNetDecoder

__all__ = [
    "AuxiliaryHead",
    "Decoded",
    "Decoder",
    "DeepLabV3PlusDecoder",
    "OCRNetDecoder",
    "PSPDecoder",
    "SegFormerDecoder",
    "SeparableDeepLabV3PlusDecoder",
    "UPerNetDecoder",
    "build_decoder",
]


def build_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> Decoder:
    """The decoder that ``MODEL.DECODER.NAME`` names, on a backbone's ``output_shape()``.

    Raises:
        ValueError: an unknown name, or keys that do not fit it.
    """
    keys = cfg.MODEL.DECODER
    try:
        return look_up(DECODER_REGISTRY, keys.NAME, "MODEL.DECODER.NAME")(cfg, input_shape)
    except ValueError as error:
        if "num_groups" in str(error):
            raise ValueError(f"MODEL.DECODER.NORM: {keys.NAME} cannot have {keys.NORM!r}: {error}") from error
        raise
