"""Which pixels of a batch enter the memory: evenly spaced ones, at most so many per component."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly_spaced_indices(counts: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Positions to take from sequences of given lengths.

    A sequence no longer than ``samples`` is taken whole; of a longer one the positions
    ``linspace(0, n - 1, samples)`` truncated to integers, in single precision, as the GMMSeg code does.

    Args:
        counts: (...,) int64 lengths.
        samples: S.

    Returns:
        indices: (..., S) int64; valid: (..., S) bool, false past the end of a short sequence.
    """
    position = torch.arange(samples, device=counts.device)
    n = counts[..., None]
    last = (n - 1).float()
    step = last / max(samples - 1, 1)
    # torch.linspace counts the first half from the start and the second half from the end.
    rising = step * position
    falling = last - step * (samples - 1 - position)
    spaced = torch.where(position < samples // 2 if samples > 1 else position == 0, rising, falling).long()
    return torch.where(n > samples, spaced, position), position < n


class ComponentGroups:
    """Pixels grouped by component, in their original order; no shape depends on the data.

    Args:
        component: (N,) int64; values outside ``0 .. num_components - 1`` belong to no group.
        num_components: number of groups.
    """

    def __init__(self, component: Tensor, num_components: int) -> None:
        inside = (component >= 0) & (component < num_components)
        key = torch.where(inside, component, num_components).to(torch.int32)
        self.order = torch.argsort(key, stable=True)
        counts = torch.zeros(num_components + 1, dtype=torch.int64, device=component.device)
        counts.scatter_add_(0, key.long(), torch.ones_like(component))
        self.starts = (counts.cumsum(0) - counts)[:-1]
        self.counts = counts[:-1]

    def pixel_at(self, within: Tensor) -> Tensor:
        """Pixels at positions of each group. within: (num_components, S) -> indices of the same shape, int64.

        Positions outside a group give some pixel's index: mask them.
        """
        flat = (self.starts[:, None] + within).clamp_(0, max(len(self.order) - 1, 0))
        return self.order[flat]
