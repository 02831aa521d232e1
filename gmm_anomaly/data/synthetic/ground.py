"""The ground plane: every pixel below the horizon is traced back to its (x, z) and coloured there."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import Frame
from .labels import ROAD, SIDEWALK, TERRAIN
from .street import Street
from .surfaces import sample_tile


def paint_ground(frame: Frame, street: Street, wall_heights: tuple[np.ndarray, np.ndarray]) -> None:
    """wall_heights: for both sides, the height of what stands at the wall line per half metre of depth."""
    camera, light = frame.camera, frame.light
    first = max(0, int(np.floor(camera.v0)) + 1)
    if first >= camera.height:
        return
    below = np.maximum(np.arange(first, camera.height, dtype=np.float32) - camera.v0, 0.4)[:, None]
    z = (camera.focal * camera.eye / below).astype(np.float32)
    columns = np.arange(camera.width, dtype=np.float32)[None]
    pixel = z / camera.focal  # metres per pixel, sideways
    deep = z * pixel / camera.eye  # metres per pixel, along the street
    x = (columns - camera.u0) * pixel - camera.shift(z).astype(np.float32)

    band = np.zeros(x.shape, np.uint8)
    for edge in street.edges:
        band += x > edge
    kinds = np.array(street.kinds, np.uint8)[band]
    road, walk = kinds == ROAD, kinds == SIDEWALK

    tone = _texture(street, x, z, pixel, kinds)
    tone *= 1.0 - walk * _joints(street, x, z, pixel, deep)
    tone *= _gutter(street, x, pixel)
    tone *= _patches(frame, street, first)
    cover, paint = _markings(street, x, z, pixel, deep, road)
    clear = light.clear(z).astype(np.float32)
    sunlight = _sunlight(frame, street, x, z, wall_heights, first)
    sunlight *= clear
    for channel in range(3):
        table = np.zeros(256, np.float32)
        table[: len(street.colours)] = street.colours[:, channel]
        plane = cv2.LUT(band, table.reshape(256, 1))
        plane *= tone
        plane += cover * (paint[channel] - plane)
        plane *= sunlight
        plane += light.haze[channel] * (1.0 - clear)
        frame.image[channel, first:] = plane
    frame.label[first:] = kinds


def _texture(
    street: Street, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, kinds: np.ndarray
) -> np.ndarray:
    ox, oz = street.offset
    # Far rows undersample the tiles: their contrast is faded instead of left to flicker.
    blotch = sample_tile("blotch", x * 16.0 + ox, z * 5.0 + oz)
    blotch *= street.grain * np.minimum(1.0, 0.25 / pixel)
    grain = sample_tile("grain", x * 70.0 + oz, z * 45.0 + ox)
    fade = np.minimum(1.0, 0.06 / pixel) + 0.15
    rough = np.array([1.0, 0.7, 1.0], np.float32)[np.minimum(kinds, 2)] * street.grain
    if TERRAIN in street.kinds:
        leaf = sample_tile("leaf", x * 40.0 + ox, z * 18.0 + oz)
        grain = np.where(kinds == TERRAIN, leaf * 2.2, grain)
    grain *= rough * fade
    grain += blotch
    grain += 1.0
    return grain


def _line(distance: np.ndarray, width: float, pixel: np.ndarray) -> np.ndarray:
    """Share of a pixel that a line covers whose centre is ``distance`` away (all metres)."""
    density = np.float32(1.0) / pixel
    covered = distance * -density
    covered += np.float32(width / 2) * density + np.float32(0.5)
    np.maximum(covered, 0.0, out=covered)
    return np.minimum(covered, np.minimum(np.float32(1.0), np.float32(width) * density), out=covered)


def _joints(street: Street, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """How much the joints between slabs darken a sidewalk, 0..0.35."""

    def grid(along: np.ndarray, resolution: np.ndarray) -> np.ndarray:
        cell = along * np.float32(1.0 / street.slab)
        distance = (0.5 - np.abs(cell - np.floor(cell) - 0.5)) * np.float32(street.slab)
        return _line(distance, 0.035, resolution)

    return 0.35 * np.maximum(grid(x, pixel), grid(z, deep))


def _gutter(street: Street, x: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    dark = _line(np.abs(x - (street.left + 0.03)), 0.16, pixel)
    dark += _line(np.abs(x - (street.right - 0.03)), 0.16, pixel)
    return 1.0 - 0.4 * dark


def _patches(frame: Frame, street: Street, first: int) -> np.ndarray:
    factor = np.full((frame.camera.height, frame.camera.width), 128, np.uint8)
    for patch in street.patches:
        if patch.round:
            angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            x = (patch.x0 + patch.x1) / 2 + np.cos(angle) * (patch.x1 - patch.x0) / 2
            z = (patch.z0 + patch.z1) / 2 + np.sin(angle) * (patch.z1 - patch.z0) / 2
        else:
            z = np.concatenate([np.linspace(patch.z0, patch.z1, 6), np.linspace(patch.z1, patch.z0, 6)])
            x = np.repeat([patch.x0, patch.x1], 6)
        pixels = frame.camera.project(np.stack([x, np.zeros_like(x), np.maximum(z, 1.5)], axis=1))
        cv2.fillPoly(
            factor, [np.rint(np.clip(pixels, -8000, 8000)).astype(np.int32)], int(128 * patch.factor)
        )
    return factor[first:] * np.float32(1 / 128)


def _markings(
    street: Street, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, deep: np.ndarray, road: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray | float, ...]]:
    """Share of each pixel that is painted, and the paint's red, green and blue."""
    cover = np.zeros(x.shape, np.float32)
    yellow = np.zeros(x.shape, np.float32)
    tones: dict[bool, tuple[float, float, float]] = {False: (225.0, 225.0, 225.0)}
    for mark in street.markings:
        line = _line(np.abs(x - np.float32(mark.x)), mark.width, pixel)
        if mark.dash:
            distance = np.abs(np.mod(z + mark.phase, mark.period) - mark.period / 2)
            line *= _line(distance, mark.dash, deep)
        is_yellow = mark.colour[2] < 150
        tones[is_yellow] = mark.colour
        target = yellow if is_yellow else cover
        np.maximum(target, line, out=target)
    for crossing in street.crosswalks:
        cell = x * np.float32(0.5 / crossing.stripe)
        distance = np.abs(cell - np.floor(cell) - 0.5) * np.float32(2 * crossing.stripe)
        across = _line(np.abs(z - (crossing.near + crossing.far) / 2), crossing.far - crossing.near, deep)
        stripes = _line(distance, crossing.stripe, pixel) * across
        stripes *= (x > street.left + 0.3) & (x < street.right - 0.3)
        np.maximum(cover, stripes, out=cover)
    paint: tuple[np.ndarray | float, ...] = tones[False]
    if True in tones:
        np.maximum(cover, yellow, out=cover)
        paint = tuple(w + yellow * (y - w) for w, y in zip(tones[False], tones[True], strict=True))
    ox, oz = street.offset
    wear = sample_tile("blotch", x * 30.0 + oz, z * 30.0 + ox)
    cover *= 0.8 + 0.2 * wear
    cover *= road
    return cover, paint


def _sunlight(
    frame: Frame,
    street: Street,
    x: np.ndarray,
    z: np.ndarray,
    wall_heights: tuple[np.ndarray, np.ndarray],
    first: int,
) -> np.ndarray:
    """1 in the sun, the ambient share in the shadow of walls and objects."""
    light = frame.light
    dx, dz = light.shadow_step()
    blocked = frame.shadow[first:]
    if abs(dx) > 0.05:
        # From a ground point towards the sun: at the wall line, the ray has risen ``rise`` metres.
        side = 0 if dx > 0 else 1
        rise = (x - street.walls[side]) / dx
        at = z - rise * dz
        heights = wall_heights[side]
        cell = np.clip(at * 2.0, 0, heights.size - 1).astype(np.int32)
        walled = ((rise > 0) & (rise < heights[cell])).astype(np.uint8) * np.uint8(255)
        blocked = np.maximum(blocked, walled)
    size = max(1, round(frame.camera.height / 256 * 2)) * 2 + 1
    soft = cv2.GaussianBlur(blocked, (size, size), 0)
    return 1.0 - (1.0 - light.ambient) * (soft * np.float32(1 / 255))


def in_wall_shadow(
    frame: Frame, street: Street, wall_heights: tuple[np.ndarray, np.ndarray], x: float, z: float
) -> bool:
    """Whether the sun is blocked by a wall a metre above the ground point (x, z)."""
    dx, dz = frame.light.shadow_step()
    if abs(dx) <= 0.05:
        return False
    side = 0 if dx > 0 else 1
    rise = (x - street.walls[side]) / dx
    heights = wall_heights[side]
    cell = int(np.clip((z - rise * dz) * 2.0, 0, heights.size - 1))
    return 0 < rise and rise + 1.0 < float(heights[cell])
