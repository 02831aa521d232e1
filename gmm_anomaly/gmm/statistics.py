"""What EM needs of the stored features: count, sum and sum of squares give mean direction and variance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_and_variance(count: Tensor, total: Tensor, total_square: Tensor) -> tuple[Tensor, Tensor]:
    """Mean direction and the variance around it (GMMSeg, Eq. 9, as released).

    Args:
        count: (...,) number of features.
        total: (..., D) float64 sum of the features.
        total_square: (..., D) float64 sum of their squares.

    Returns:
        direction: (..., D), the sum normalised to length one; variance: (..., D), the biased mean of the
        squared deviation from ``direction`` (not from the mean), without any floor. Zero where count is 0.
    """
    n = count.clamp(min=1)[..., None].to(total.dtype)
    direction = F.normalize(total, dim=-1, eps=1e-12)
    variance = total_square / n - 2 * direction * (total / n) + direction.square()
    seen = (count > 0)[..., None]
    return torch.where(seen, direction, 0.0), torch.where(seen, variance.clamp(min=0), 0.0)
