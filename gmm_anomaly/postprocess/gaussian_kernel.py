"""Gaussian smoothing of a map, with holes between the taps where it is dilated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def smooth(score: Tensor, size: int, sigma: float, dilation: int = 1) -> Tensor:
    """Convolve with a Gaussian that sums to one; the border is replicated.

    Args:
        score: (H, W) floating point.
        size: taps per side, odd. sigma: in taps. dilation: pixels from tap to tap.

    Returns:
        (H, W).
    """
    offset = torch.arange(size, dtype=torch.float64, device=score.device) - size // 2
    kernel = torch.exp(-0.5 * (offset / sigma).square())
    kernel = (kernel / kernel.sum()).to(score.dtype)
    margin = dilation * (size // 2)
    padded = F.pad(score[None, None], (margin,) * 4, mode="replicate")
    # The square kernel is the product of its row and its column.
    rows = F.conv2d(padded, kernel.view(1, 1, size, 1), dilation=dilation)
    return F.conv2d(rows, kernel.view(1, 1, 1, size), dilation=dilation)[0, 0]
