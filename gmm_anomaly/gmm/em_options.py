"""Checks of the numbers that EM is run with."""

from __future__ import annotations

from .empty_components import RULES


def check_sizes(**sizes: tuple[int, int]) -> None:
    """name: (size, least). Raises ValueError for a size below its least."""
    for name, (size, least) in sizes.items():
        if size < least:
            raise ValueError(f"{name}: expected at least {least}, found {size}")


def check_em_options(
    *,
    memory_size: int,
    samples_per_update: int,
    momentum_mean: float,
    momentum_scale: float,
    variance_floor: float,
    empty_components: str,
) -> None:
    """Raise ValueError for what :class:`GaussianMixtureBank` cannot be built with."""
    if samples_per_update > memory_size:
        raise ValueError(
            f"samples_per_update ({samples_per_update}) exceeds memory_size ({memory_size}): one batch "
            "would overwrite itself; lower MODEL.GMM.SAMPLES_PER_UPDATE or raise MODEL.GMM.MEMORY_SIZE"
        )
    for name, momentum in (("momentum_mean", momentum_mean), ("momentum_scale", momentum_scale)):
        if not 0 <= momentum <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], found {momentum}")
    if not variance_floor >= 0:
        raise ValueError(f"variance_floor: expected a non-negative number, found {variance_floor}")
    if empty_components not in RULES:
        raise ValueError(
            f"empty_components (MODEL.GMM.EMPTY_COMPONENTS): expected one of {', '.join(RULES)}, found "
            f"{empty_components!r}"
        )
