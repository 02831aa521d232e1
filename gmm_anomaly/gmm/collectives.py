"""The few collective operations the mixture needs; each is the identity in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_stack(tensor: Tensor) -> Tensor:
    """tensor: (...) of the same shape on every rank -> (ranks, ...)."""
    if world_size() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over the ranks, in place; returns the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_first(tensor: Tensor) -> None:
    """Overwrite the tensor with that of rank 0."""
    if world_size() > 1:
        # gloo has no booleans.
        carried = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
        dist.broadcast(carried, 0)
        tensor.copy_(carried)
