"""What closes the view: sky with clouds, and a hazy line of trees, hills or roofs along the horizon."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import Frame
from .labels import BUILDING, SKY, VEGETATION
from .surfaces import sample_tile, smooth_tile


@dataclass(frozen=True)
class Backdrop:
    """kinds: per strip "trees" or "roofs", far to near. heights: share of the focal length. offset: where in
    the noise tiles this scene lies."""

    kinds: tuple[str, ...]
    heights: tuple[float, ...]
    colours: tuple[np.ndarray, ...]
    offset: tuple[int, int]
    cloud_scale: float


def sample_backdrop(rng: np.random.Generator) -> Backdrop:
    kinds = tuple("roofs" if rng.random() < 0.4 else "trees" for _ in range(int(rng.integers(1, 3))))
    colours = []
    for kind in kinds:
        if kind == "trees":
            colours.append(
                np.array([rng.uniform(45, 95), rng.uniform(75, 115), rng.uniform(35, 75)], np.float32)
            )
        else:
            colours.append(rng.uniform(80, 170) + rng.uniform(-20, 20, 3).astype(np.float32))
    return Backdrop(
        kinds=kinds,
        heights=tuple(float(h) for h in np.sort(rng.uniform(0.015, 0.075, len(kinds)))[::-1]),
        colours=tuple(colours),
        offset=(int(rng.integers(0, 4096)), int(rng.integers(0, 4096))),
        cloud_scale=float(rng.uniform(0.6, 1.8)),
    )


def paint_backdrop(frame: Frame, backdrop: Backdrop) -> None:
    _paint_sky(frame, backdrop)
    for index, kind in enumerate(backdrop.kinds):
        _paint_strip(frame, backdrop, index, kind)


def _paint_sky(frame: Frame, backdrop: Backdrop) -> None:
    camera, light = frame.camera, frame.light
    rows = min(camera.height, int(camera.v0) + 3)
    above = (camera.v0 + 3 - np.arange(rows, dtype=np.float32))[:, None] / np.float32(camera.focal)
    # A flat layer of cloud: its pattern grows towards the zenith and is squeezed at the horizon. Clouds are
    # soft, so every other pixel of it is enough.
    columns = (np.arange(0, camera.width, 2, dtype=np.float32)[None] - np.float32(camera.u0)) / np.float32(
        camera.focal
    )
    distance = np.float32(40.0 * backdrop.cloud_scale) / (above[::2] + np.float32(0.12))
    x = columns * distance + np.float32(backdrop.offset[0])
    cover = smooth_tile("blotch", x, np.broadcast_to(distance + np.float32(backdrop.offset[1]), x.shape))
    cover = np.clip((cover + (2.0 * light.cloud_cover - 1.0) * 0.6) * 1.6, 0.0, 1.0)
    cover *= np.clip(above[::2] * 6.0, 0.15, 0.95)
    bearing = np.arctan2(float(light.sun[0]), float(light.sun[2]))
    glow = np.zeros_like(cover)
    if abs(bearing) < 1.2 and light.ambient < 0.7:
        glow = (
            np.exp(-((columns - np.float32(np.tan(bearing))) ** 2) * 3.0) * np.exp(-above[::2] * 3.0) * 45.0
        )
    cover, glow = (cv2.resize(a, (camera.width, rows), interpolation=cv2.INTER_LINEAR) for a in (cover, glow))
    rise = np.clip(above * 1.9, 0.0, 1.0) ** 0.7
    for channel, warmth in enumerate((1.0, 0.9, 0.65)):
        clear = light.horizon[channel] + rise * (light.zenith[channel] - light.horizon[channel])
        sky = glow * np.float32(warmth)
        sky += clear
        sky += cover * (light.cloud[channel] - sky)
        frame.image[channel, :rows] = sky
    frame.label[:rows] = SKY


def _paint_strip(frame: Frame, backdrop: Backdrop, index: int, kind: str) -> None:
    camera, light = frame.camera, frame.light
    columns = np.arange(camera.width, dtype=np.float32)
    bearing = (columns - camera.u0) / camera.focal * 100.0 + backdrop.offset[index]
    if kind == "trees":
        skyline = (
            0.75
            + 0.45 * sample_tile("blotch", bearing * 3.0, np.zeros(1))
            + 0.25 * sample_tile("leaf", bearing * 6.0, np.zeros(1))
        )
    else:
        house = np.floor(bearing / 6.0) * 37.0
        skyline = 0.75 + 0.6 * sample_tile("grain", house, np.full(1, 5.0))
    tall = np.maximum(skyline, 0.15) * backdrop.heights[index] * camera.focal
    top = max(0, int(camera.v0 - float(tall.max())))
    bottom = min(camera.height, int(camera.v0) + 4)
    rows = np.arange(top, bottom, dtype=np.float32)[:, None]
    cover = np.clip(rows - (camera.v0 - tall) + 0.5, 0.0, 1.0)
    texture = sample_tile("leaf" if kind == "trees" else "blotch", bearing * 5.0, rows * 512.0 / camera.focal)
    clear = float(light.clear(90.0 + 60.0 * (len(backdrop.kinds) - 1 - index)))
    shade = (1.0 + 0.18 * texture) * np.float32((0.5 + 0.5 * light.ambient) * clear)
    for channel in range(3):
        region = frame.image[channel, top:bottom]
        painted = shade * backdrop.colours[index][channel] + np.float32(light.haze[channel] * (1.0 - clear))
        region += cover * (painted - region)
    frame.label[top:bottom][cover > 0.5] = VEGETATION if kind == "trees" else BUILDING
