"""Names of MMSegmentation's heads -> names of this project's decoders and classifiers."""

from __future__ import annotations

import re

from torch import nn

from gmm_anomaly.modeling import decoders

Table = tuple[tuple[str, str], ...]

AUXILIARY: Table = (
    (r"auxiliary_head\.convs\.0", "auxiliary.conv"),
    (r"auxiliary_head\.conv_seg", "auxiliary.predictor"),
)
# In front of what a decoder calls its own; names are plain (see ``plain_name``).
DECODERS: dict[type[nn.Module], Table] = {
    decoders.SeparableDeepLabV3PlusDecoder: (
        (r"decode_head\.image_pool\.1", "image_pool"),
        (r"decode_head\.aspp_modules\.0", "branches.0"),
        (r"decode_head\.aspp_modules\.([1-9])\.(depthwise|pointwise)_conv", r"branches.\1.\2"),
        (r"decode_head\.bottleneck", "bottleneck"),
        (r"decode_head\.c1_bottleneck", "project"),
        (r"decode_head\.sep_bottleneck\.(\d)\.(depthwise|pointwise)_conv", r"refine.\1.\2"),
    ),
    decoders.OCRNetDecoder: (
        (r"decode_head\.bottleneck", "bottleneck"),
        (r"decode_head\.object_context_block\.(query|key)_project\.(\d)", r"attention.\1.\2"),
        (r"decode_head\.object_context_block\.(value|out)_project", r"attention.\1"),
        (r"decode_head\.object_context_block\.bottleneck", "attention.fuse"),
    ),
    decoders.UPerNetDecoder: (
        (r"decode_head\.psp_modules\.(\d)\.1", r"pyramid.branches.\1"),
        (r"decode_head\.bottleneck", "pyramid.bottleneck"),
        (r"decode_head\.lateral_convs\.(\d)", r"lateral.\1"),
        (r"decode_head\.fpn_convs\.(\d)", r"smooth.\1"),
        (r"decode_head\.fpn_bottleneck", "fuse"),
    ),
    decoders.SegFormerDecoder: (
        (r"decode_head\.convs\.(\d)", r"project.\1"),
        (r"decode_head\.fusion_conv", "fuse"),
    ),
    decoders.PSPDecoder: (
        (r"decode_head\.psp_modules\.(\d)\.1", r"pyramid.branches.\1"),
        (r"decode_head\.bottleneck", "pyramid.bottleneck"),
    ),
}
SOFTMAX: Table = ((r"decode_head\.conv_seg", "predictor"),)
# The released head's projection is a ConvModule; here a convolution and a norm in a Sequential.
GMM: Table = (
    (r"decode_head\.projection\.norm", "project.2"),
    (r"decode_head\.projection", "project.1"),
    (r"decode_head\.feat_norm", "feature_norm"),
    (r"decode_head\.mask_norm", "class_norm"),
)


def decoder_table(decoder: nn.Module) -> Table:
    """Of a decoder.

    Raises:
        ValueError: a decoder that MMSegmentation does not have.
    """
    if type(decoder) not in DECODERS:
        known = ", ".join(kind.__name__ for kind in DECODERS)
        raise ValueError(
            f"MODEL.DECODER.NAME: checkpoints can be converted for {known}, found {type(decoder).__name__}"
        )
    return AUXILIARY + DECODERS[type(decoder)]


def renamed(name: str, table: Table) -> str | None:
    """The new name by the first line of the table that fits, or None."""
    for theirs, ours in table:
        match = re.match(rf"{theirs}(?=\.)", name)
        if match is not None:
            return match.expand(ours) + name[match.end() :]
    return None
