"""Surface patterns of anomalies: none of them is used on a known object."""

from __future__ import annotations

import numpy as np

from .surfaces import patch

PATTERNS = ("fur", "leopard", "zebra", "wood", "checker", "stripes", "rust", "knit", "plain")


def pattern_image(
    name: str,
    height: int,
    width: int,
    period: float,
    colours: np.ndarray,
    offset: tuple[int, int],
    turn: float,
) -> np.ndarray:
    """Picture of a pattern, (height, width, 3) float32 in 0..1.

    period: pixels of one repeat; colours: (2, 3) in 0..1; offset: place in the noise tiles; turn: radians by
    which directed patterns are turned. Raises ValueError for an unknown name.
    """
    period = max(period, 2.0)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    a = (x * np.cos(turn) + y * np.sin(turn)) / period
    b = (-x * np.sin(turn) + y * np.cos(turn)) / period
    coarse = patch("blotch", height, width, max(period / 12, 0.3), offset)
    fine = patch("leaf", height, width, max(period / 24, 0.4), offset[::-1])
    if name == "fur":
        mix = np.clip(0.45 + 0.55 * fine + 0.35 * coarse, 0, 1)
    elif name == "leopard":
        spots = patch("leaf", height, width, max(period / 9, 0.5), offset)
        mix = np.clip((np.abs(spots - 0.25) - 0.16) * -9.0 + 0.5, 0, 1) + 0.15 * fine
    elif name == "zebra":
        mix = np.clip(np.sin(2 * np.pi * (a + 0.45 * coarse)) * 3.0 + 0.5, 0, 1)
    elif name == "wood":
        grain = np.sin(
            2 * np.pi * (5.0 * b + 1.6 * patch("blotch", height, width, max(period / 6, 0.5), offset))
        )
        plank = np.abs(b - np.floor(b) - 0.5) > 0.46
        mix = np.clip(0.4 + 0.25 * grain + 0.15 * fine + 0.7 * plank, 0, 1)
    elif name == "checker":
        mix = ((np.floor(2 * a) + np.floor(2 * b)) % 2).astype(np.float32)
    elif name == "stripes":
        mix = np.clip(np.sin(2 * np.pi * a) * 6.0 + 0.5, 0, 1)
    elif name == "rust":
        mix = np.clip((coarse + 0.5 * fine) * 2.5 + 0.4, 0, 1)
    elif name == "knit":
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * 3.0 * a) * np.sin(2 * np.pi * 3.0 * b)
    elif name == "plain":
        mix = 0.15 + 0.15 * coarse
    else:
        raise ValueError(f"unknown pattern {name!r}; known: {', '.join(PATTERNS)}")
    mix = np.broadcast_to(mix, (height, width))[..., None].astype(np.float32)
    return colours[0].astype(np.float32) * (1.0 - mix) + colours[1].astype(np.float32) * mix
