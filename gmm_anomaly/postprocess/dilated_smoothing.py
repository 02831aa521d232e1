"""Smoothing over a wide neighbourhood, against isolated high scores."""

from __future__ import annotations

from torch import Tensor

from .gaussian_kernel import smooth
from .registry import register_postprocess

SIZE, SIGMA, DILATION = 7, 1.0, 6


@register_postprocess("dilated_smoothing")
def dilated_smoothing(score: Tensor, _prediction: Tensor) -> Tensor:
    """A 7x7 Gaussian of sigma 1 with dilation 6 (Standardized Max Logits, Jung et al., ICCV 2021, section
    3.4, as released). It reaches over 37 pixels and erases objects of less than about 10."""
    return smooth(score, SIZE, SIGMA, DILATION)
