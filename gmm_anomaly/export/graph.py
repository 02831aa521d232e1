"""One graph of a segmentor by torch.export, with sizes left open where the network allows it."""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

# Sizes of the example image that is traced: odd, and of no common factor with a stride.
EXAMPLE_SIZE = (77, 101)
MAX_BATCH, MAX_SIDE = 64, 16384


def export_graph(
    module: nn.Module, size: tuple[int, int] | None, min_side: int = 2, dtype: torch.dtype = torch.uint8
) -> ExportedProgram:
    """Trace ``module`` for any batch of up to 64 images.

    Args:
        module: images (B, 3, H, W) to (segmentation, score).
        size: height and width to fix; None: any.
        min_side: the least height and width where they are open.
        dtype: of the image.

    Raises:
        ValueError: a network that cannot be traced so: with an open size, one that computes with height and
            width in Python, so that they become constants.
    """
    dimensions = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if size is None:
        dimensions |= {2: Dim("height", min=min_side, max=MAX_SIDE)}
        dimensions |= {3: Dim("width", min=min_side, max=MAX_SIDE)}
    example = torch.zeros(2, 3, *(size or EXAMPLE_SIZE), dtype=dtype)
    # torch logs where every guard that fails came from; its error is enough.
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=(dimensions,), strict=False)
    except Exception as error:  # torch.export raises many kinds, from several packages
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = "with an open height and width" if size is None else f"at {size[0]}x{size[1]}"
        raise ValueError(
            f"torch.export cannot trace this network {what} ({type(error).__name__}: "
            f"{lines[0][:200] if lines else 'no message'})"
        ) from error
    finally:
        logger.setLevel(level)
