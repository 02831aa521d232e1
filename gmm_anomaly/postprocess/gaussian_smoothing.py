"""Light smoothing of pixel noise."""

from __future__ import annotations

from torch import Tensor

from .gaussian_kernel import smooth
from .registry import register_postprocess

SIZE, SIGMA = 7, 1.0


@register_postprocess("gaussian_smoothing")
def gaussian_smoothing(score: Tensor, _prediction: Tensor) -> Tensor:
    """A 7x7 Gaussian of sigma 1, an option of RbA's evaluation (Nayal et al., ICCV 2023)."""
    return smooth(score, SIZE, SIGMA)
