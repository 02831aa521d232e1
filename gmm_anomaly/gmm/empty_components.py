"""What becomes of components that no pixel was ever assigned to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

RULES = ("keep", "reseed")


class Reseeded(NamedTuple):
    """means: (C, M, D) of unit length; scales: (C, M, D); which: (C, M) bool, the components set anew."""

    means: Tensor
    scales: Tensor
    which: Tensor


def reseed_empty(means: Tensor, scales: Tensor, variance: Tensor, count: Tensor) -> Reseeded:
    """Give empty components a half of their class's most spread component (the split of Linde, Buzo and Gray,
    1980).

    A class's j-th empty component goes to its j-th most spread one, one standard deviation along that one's
    widest dimension, and takes its scales; with more empty components than others, the next ones go the
    other way, then two standard deviations, and so on. Nothing is random, so ranks with the same state stay
    alike.

    Args:
        means: (C, M, D) unit length. scales: (C, M, D).
        variance: (C, M, D) of the stored features, without floor. A component without spread is not split.
        count: (C, M) features in each memory. A class whose memories are all empty stays as it is.
    """
    classes, components, dim = means.shape
    empty = count == 0
    spread = variance.sum(dim=2).masked_fill(empty, -1.0)
    order = spread.argsort(dim=1, descending=True, stable=True)
    others = (~empty).sum(dim=1, keepdim=True)
    place = empty.cumsum(dim=1) - 1
    donor = order.gather(1, torch.where(empty, place % others.clamp(min=1), 0))
    turn = torch.div(place, others.clamp(min=1), rounding_mode="floor")
    factor = torch.where(turn % 2 == 0, 1.0, -1.0) * (turn // 2 + 1)

    def of_donor(values: Tensor) -> Tensor:
        return values.gather(1, donor[..., None].expand(classes, components, dim))

    widest, dimension = of_donor(variance).max(dim=2)
    step = F.one_hot(dimension, dim) * (factor * widest.sqrt())[..., None]
    moved = F.normalize(of_donor(means) + step.to(means.dtype), dim=2)
    which = empty & (others > 0) & (widest > 0)
    chosen = which[..., None]
    return Reseeded(torch.where(chosen, moved, means), torch.where(chosen, of_donor(scales), scales), which)
