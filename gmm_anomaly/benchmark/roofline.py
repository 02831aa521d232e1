"""How near a computation comes to what the machine can do: bytes it cannot do without against the bandwidth
of a copy, and the time of a bare matrix product of its size, all measured in one run."""

from __future__ import annotations

from collections.abc import Callable

import torch

COPIED = 2**28  # bytes; beyond any cache


def copy(device: str) -> Callable[[], torch.Tensor]:
    """A function that reads and writes ``COPIED`` bytes."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def density_bytes(pixels: int, dim: int, classes: int, components: int) -> int:
    """Read or written once: float32 pixels in, class densities out, and the mixtures' linear, quadratic and
    constant terms."""
    return 4 * (pixels * (dim + classes) + (2 * dim + 1) * classes * components)


def roofline(moved: int, seconds: float, *, copying: float, product: float) -> dict[str, float]:
    """Shares of the machine's limits.

    Args:
        moved: bytes that have to be read or written. seconds: that the work took. copying: seconds of
            :func:`copy`. product: seconds of the bare matrix product that it cannot do without.

    Returns:
        ``GB`` moved, ``GB_s`` of the work and ``copy_GB_s``; ``of_bandwidth``, and ``of_roofline``: the time
        that the slower of both limits allows, over the time it took.
    """
    bandwidth = 2 * COPIED / copying
    least = max(moved / bandwidth, product)
    return {
        "GB": moved / 1e9,
        "GB_s": moved / seconds / 1e9,
        "copy_GB_s": bandwidth / 1e9,
        "of_bandwidth": moved / bandwidth / seconds,
        "of_roofline": least / seconds,
    }
