"""Tileable noise: the grain of every surface. The tiles are constants; a scene varies offset and scale."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np

TILE = 256


@cache
def noise_tile(kind: str) -> np.ndarray:
    """(256, 256) float32 noise, periodic, mean 0, values within -1..1. kind: "grain" (white, slightly soft),
    "blotch" (a few octaves, patches of 8 to 64 pixels) or "leaf" (clumps of 3 to 12 pixels)."""
    octaves = {"grain": (128, 256), "blotch": (4, 8, 16, 32, 64), "leaf": (16, 32, 64, 128)}[kind]
    rng = np.random.default_rng((2718, len(octaves), octaves[0]))
    tile = np.zeros((TILE, TILE), np.float32)
    for step, cells in enumerate(octaves):
        lattice = rng.standard_normal((cells, cells), dtype=np.float32)
        # Wrapped by two lattice cells on each side, enlarged and cropped: cubic interpolation stays periodic.
        lattice = np.pad(lattice, 2, mode="wrap")
        factor = TILE // cells
        enlarged = cv2.resize(lattice, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        crop = enlarged[2 * factor : 2 * factor + TILE, 2 * factor : 2 * factor + TILE]
        tile += crop * (0.75**step if kind != "grain" else 1.0)
    tile -= tile.mean()
    tile /= 2.5 * tile.std()
    tile = np.clip(tile, -1.0, 1.0)
    tile.setflags(write=False)
    return tile


def sample_tile(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Nearest tile value at tile pixel (x, y), any magnitude, broadcast against each other; float32."""
    tile = noise_tile(kind)
    column = x.astype(np.int32) & (TILE - 1)
    row = y.astype(np.int32) & (TILE - 1)
    return tile.ravel()[(row << 8) + column]


def smooth_tile(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear tile value at tile pixel (x, y), both (H, W); float32."""
    # cv2.remap keeps integer coordinates in 16 bits: reduced to one period first; BORDER_WRAP closes it.
    map_x = np.mod(x, TILE).astype(np.float32, copy=False)
    map_y = np.mod(y, TILE).astype(np.float32, copy=False)
    return cv2.remap(noise_tile(kind), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def patch(kind: str, height: int, width: int, zoom: float, offset: tuple[int, int]) -> np.ndarray:
    """(height, width) float32 piece of a tile at ``zoom`` picture pixels per tile pixel, bilinear."""
    step = 1.0 / zoom if zoom < 1.0 else 1.0
    rows = max(1, math.ceil(height / max(zoom, 1.0)))
    columns = max(1, math.ceil(width / max(zoom, 1.0)))
    y = (np.arange(rows) * step + offset[0]).astype(np.int64) & (TILE - 1)
    x = (np.arange(columns) * step + offset[1]).astype(np.int64) & (TILE - 1)
    piece = noise_tile(kind)[y[:, None], x[None]]
    if zoom <= 1.0:
        return piece
    return cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR)
