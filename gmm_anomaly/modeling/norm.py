"""Norm layers by name, where the device allows them."""

from __future__ import annotations

import logging
from functools import cache

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gmm_anomaly.gmm.collectives import broadcast_from_first, world_size


@cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def usable_norm(name: str, device: str) -> str:
    """``name``, or "BN" where "SyncBN" cannot work; one line in the log says so.

    Synchronised batch norm exists on GPUs only, and has nothing to do in a run of one process. Ask once the
    process group stands.
    """
    if name != "SyncBN":
        return name
    if not device.startswith("cuda"):
        _log_once(f"SyncBN needs GPUs; on {device} BN is used instead, with statistics of each process's own")
        return "BN"
    if world_size() == 1:
        _log_once("SyncBN needs several processes; in this one BN is used instead")
        return "BN"
    return name


def share_statistics(model: nn.Module) -> None:
    """Give the batch norms of every rank the running statistics of rank 0, which its checkpoints have.

    Those that are not synchronised drift apart in training, and each rank would evaluate another model.
    Collective: every rank must call.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers(recurse=False):
                broadcast_from_first(buffer)
