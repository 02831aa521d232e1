"""Pinhole camera over a flat, possibly bending street."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """World: x metres to the right, y metres up from the road, z metres ahead; the eye is at (0, eye, 0).

    A bend moves the whole street sideways by ``bend * z**2`` up to ``bend_end`` and goes on straight from
    there, so that walls, markings and objects all bend together and depth stays one number per ground row.
    """

    height: int
    width: int
    focal: float
    u0: float
    v0: float
    eye: float
    bend: float
    bend_end: float

    def shift(self, z: np.ndarray) -> np.ndarray:
        """Sideways metres of the street at depth ``z``."""
        near = np.minimum(z, self.bend_end)
        return self.bend * near * (2.0 * z - near)

    def scale(self, z: float) -> float:
        """Pixels per metre at depth ``z``."""
        return self.focal / z

    def project(self, points: np.ndarray) -> np.ndarray:
        """points: (N, 3) world metres with z > 0. Returns (N, 2) float64 pixel (column, row)."""
        z = np.maximum(points[:, 2], 0.5)
        scale = self.focal / z
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = (points[:, 0] + self.shift(z)) * scale if self.bend else points[:, 0] * scale
        pixels[:, 1] = (self.eye - points[:, 1]) * scale
        pixels += (self.u0, self.v0)
        return pixels

    def ground(self, x: float, z: float) -> tuple[float, float]:
        """Pixel (column, row) of the ground point (x, z)."""
        near = min(z, self.bend_end)
        scale = self.focal / z
        return self.u0 + (x + self.bend * near * (2.0 * z - near)) * scale, self.v0 + self.eye * scale
