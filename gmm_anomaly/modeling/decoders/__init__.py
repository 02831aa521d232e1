"""Decoders: from a backbone's features to pixel features. Importing this package registers them."""

from __future__ import annotations

from .base import AuxiliaryHead, Decoded, Decoder, build_decoder
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
