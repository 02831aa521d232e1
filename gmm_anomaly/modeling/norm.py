"""Norm layers by name, where the device allows them."""

from __future__ import annotations

import logging
from functools import cache


@cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def usable_norm(name: str, device: str) -> str:
    """``name``, or "BN" where "SyncBN" cannot work: synchronised batch norm exists on GPUs only."""
    if name == "SyncBN" and not device.startswith("cuda"):
        _log_once(f"SyncBN needs a GPU; on {device} BN is used instead")
        return "BN"
    return name
