"""Gaussian smoothing: light against pixel noise, dilated against isolated high scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .registry import register_postprocess

SIZE, SIGMA = 7, 1.0


@register_postprocess("gaussian_smoothing")
def gaussian_smoothing(score: Tensor, _prediction: Tensor, _image: Tensor) -> Tensor:
    """A 7x7 Gaussian of sigma 1, an option of RbA's evaluation (Nayal et al., ICCV 2023)."""
    return _smooth(score, 1)


@register_postprocess("dilated_smoothing")
def dilated_smoothing(score: Tensor, _prediction: Tensor, _image: Tensor) -> Tensor:
    """A 7x7 Gaussian of sigma 1 with dilation 6 (Standardized Max Logits, Jung et al., ICCV 2021, section
    3.4, as released). It reaches over 37 pixels and erases objects of less than about 10."""
    return _smooth(score, 6)


def _smooth(score: Tensor, dilation: int) -> Tensor:
    """Convolve with a Gaussian that sums to one and has a tap every ``dilation`` pixels; the border is
    replicated."""
    offset = torch.arange(SIZE, dtype=torch.float64, device=score.device) - SIZE // 2
    kernel = torch.exp(-0.5 * (offset / SIGMA).square())
    kernel = (kernel / kernel.sum()).to(score.dtype)
    margin = dilation * (SIZE // 2)
    padded = F.pad(score[None, None], (margin,) * 4, mode="replicate")
    # The square kernel is the product of its row and its column.
    rows = F.conv2d(padded, kernel.view(1, 1, SIZE, 1), dilation=dilation)
    return F.conv2d(rows, kernel.view(1, 1, 1, SIZE), dilation=dilation)[0, 0]
