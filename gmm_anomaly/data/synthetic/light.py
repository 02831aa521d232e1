"""Daylight of one scene, and what the camera does to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Light:
    """sun: unit vector to the sun. ambient: brightness of what the sun does not reach, sunlit ground is 1.
    zenith, horizon, cloud, haze: RGB in 0..255. haze_length: metres after which 1/e of an object's own colour
    is left. gains: white balance per channel. noise: standard deviation in grey levels. blur: Gaussian sigma
    in pixels of a 256-row picture. jpeg: quality, 0 for none."""

    sun: np.ndarray
    ambient: float
    zenith: np.ndarray
    horizon: np.ndarray
    cloud: np.ndarray
    cloud_cover: float
    haze: np.ndarray
    haze_length: float
    exposure: float
    gains: np.ndarray
    gamma: float
    vignette: float
    noise: float
    blur: float
    jpeg: int

    def shade(self, normal: tuple[float, float, float]) -> float:
        """Brightness of a face with this unit normal, relative to sunlit ground."""
        facing = max(0.0, float(np.dot(normal, self.sun)))
        return min(1.2, self.ambient + (1.0 - self.ambient) * facing / max(float(self.sun[1]), 0.35))

    def clear(self, z: np.ndarray | float) -> np.ndarray | float:
        """Share of an object's own colour that reaches the camera from depth ``z``."""
        return np.exp(-z / self.haze_length)

    def shadow_step(self) -> tuple[float, float]:
        """Ground displacement (x, z) of the shadow of a point one metre up."""
        reach = min(2.5, 1.0 / float(self.sun[1]))
        return -float(self.sun[0]) * reach, -float(self.sun[2]) * reach


def sample_light(rng: np.random.Generator) -> Light:
    """Time of day, weather, white balance, exposure and sensor, drawn independently of the street."""
    overcast = rng.random() < 0.35
    elevation = np.deg2rad(rng.uniform(18, 65))
    azimuth = rng.uniform(-np.pi, np.pi)
    sun = np.array(
        [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)]
    )
    warmth = rng.uniform(-0.6, 1.0) * (1.0 - 0.5 * elevation)
    if overcast:
        grey = rng.uniform(165, 240)
        zenith = grey * np.array([0.93, 0.97, 1.0]) * rng.uniform(0.8, 1.0)
        horizon = grey * np.array([1.0, 1.0, 1.0])
        cloud = np.full(3, grey * rng.uniform(0.75, 0.95))
        ambient = rng.uniform(0.78, 0.92)
    else:
        zenith = np.array([rng.uniform(50, 130), rng.uniform(110, 170), rng.uniform(190, 240)])
        horizon = np.array([rng.uniform(190, 245), rng.uniform(200, 240), rng.uniform(205, 250)])
        horizon += max(warmth, 0.0) * np.array([25, -5, -40])
        cloud = np.full(3, rng.uniform(225, 255))
        ambient = rng.uniform(0.42, 0.68)
    haze = 0.75 * horizon + 0.25 * zenith
    return Light(
        sun=sun,
        ambient=float(ambient),
        zenith=zenith.astype(np.float32),
        horizon=np.clip(horizon, 0, 255).astype(np.float32),
        cloud=cloud.astype(np.float32),
        cloud_cover=float(rng.uniform(0.25, 0.8)),
        haze=haze.astype(np.float32),
        haze_length=float(np.exp(rng.uniform(np.log(90), np.log(700)))),
        exposure=float(rng.uniform(0.85, 1.3)),
        gains=1.0 + 0.1 * warmth * np.array([1.0, 0.1, -1.0]) + rng.uniform(-0.025, 0.025, 3),
        gamma=float(rng.uniform(0.8, 1.12)),
        vignette=float(rng.uniform(0.0, 0.35)),
        noise=float(rng.uniform(0.8, 4.5)),
        blur=float(rng.uniform(0.35, 0.75)),
        jpeg=int(rng.integers(60, 96)) if rng.random() < 0.5 else 0,
    )
