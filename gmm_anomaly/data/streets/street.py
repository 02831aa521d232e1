"""The street itself: lanes, kerbs, sidewalks and verges on flat ground, with the sky and skyline behind."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION, Canvas, Frame, noise


class Street:
    """Cross-section of a street as seen from the driver's lane, and what is painted on it; x, z in metres.

    edges: ascending x between bands; kinds, colours: label and RGB per band, one more than edges. left,
    right: road edges. walks: (x0, x1) of both sidewalks. walls: x of both wall lines. lanes: x, and whether
    it leads ahead. lines: x, and whether solid. crossing: nearest z, farthest z, width of a stripe; or
    None."""

    def __init__(self, rng: np.random.Generator) -> None:
        lane = rng.uniform(2.9, 3.6)
        oncoming, same = int(rng.integers(0, 3)), int(rng.integers(1, 3))
        # x of the line between the two directions.
        middle = -(int(rng.integers(0, same)) + 0.5) * lane + rng.normal(0, 0.25)
        self.parking = (rng.random() < 0.5, rng.random() < 0.5)
        strips = [2.2 if parked else rng.uniform(0.1, 0.6) for parked in self.parking]
        self.left, self.right = middle - oncoming * lane - strips[0], middle + same * lane + strips[1]
        self.lanes = [(middle + (i + 0.5) * lane, i >= 0) for i in range(-oncoming, same)]

        road = rng.uniform(70, 135) + rng.uniform(-5, 5, 3)
        kerb = rng.uniform(120, 185) + rng.uniform(-8, 8, 3)
        # Sidewalks range from asphalt like the road to light, beige or reddish slabs.
        walk = rng.uniform(85, 175) + rng.uniform(0, 18) * np.array([1.0, 0.1, -1.0]) + rng.uniform(-5, 5, 3)
        if rng.random() < 0.2:
            walk *= (1.08, 0.85, 0.78)
        grass = rng.uniform((80, 105, 45), (150, 150, 85))
        bands: list[tuple[float, int, np.ndarray]] = []  # where they begin, on the side of the road
        self.walks: list[list[float]] = []
        self.walls: list[float] = []
        for side, x in ((-1, self.left), (1, self.right)):
            for width, kind, colour in (
                (rng.uniform(0.14, 0.28), SIDEWALK, kerb),
                (rng.uniform(0.8, 3.0) if rng.random() < 0.45 else 0.0, TERRAIN, grass),
                (rng.uniform(1.8, 4.2), SIDEWALK, walk),
                (rng.uniform(0.6, 4.0) if rng.random() < 0.5 else 0.0, TERRAIN, grass * 0.9),
                (0.01, TERRAIN, grass * rng.uniform(0.8, 1.1)),
            ):
                if width:
                    bands.append((x, kind, colour))
                    x += side * width
                if colour is walk:
                    self.walks.append(sorted((x - side * width, x)))
            self.walls.append(x)
        bands.sort(key=lambda band: band[0])
        self.edges = [band[0] for band in bands]
        bands.insert(self.edges.index(self.right), (0.0, ROAD, road))
        self.kinds = np.array([band[1] for band in bands], np.uint8)
        self.colours = np.float32([band[2] for band in bands])
        self.grain, self.offset = rng.uniform(0.06, 0.16), int(rng.integers(4096))

        self.white = rng.uniform(195, 250)
        self.line_width, self.dash, gap = rng.uniform((0.11, 2.0, 2.5), (0.18, 4.5, 6.0)).tolist()
        self.period, self.phase = self.dash + gap, rng.uniform(0, 9)
        self.lines = [(middle + i * lane, False) for i in range(1 - oncoming, same) if i]
        if oncoming:
            self.lines.append((middle, rng.random() < 0.4))
        if rng.random() < 0.75:
            edges = (middle - oncoming * lane + 0.1, middle + same * lane - 0.1)
            self.lines += [(x, True) for x in edges]
        near = float(np.exp(rng.uniform(np.log(7), np.log(35))))
        crossing = (near, near + rng.uniform(2.5, 4.0), rng.uniform(0.4, 0.6))
        self.crossing = crossing if rng.random() < 0.3 else None

    def paint(self, frame: Frame) -> None:
        """Trace every pixel below the horizon back to its (x, z) and colour it there. Shadows that were cast
        before lie on it."""
        camera, light = frame.camera, frame.light
        first = int(camera.v0) + 1
        below = np.maximum(np.arange(first, camera.height, dtype=np.float32) - camera.v0, 0.4)[:, None]
        z = camera.focal * camera.eye / below
        pixel = z / camera.focal  # metres per pixel, sideways
        deep = z * pixel / camera.eye  # metres per pixel, along the street
        x = (np.arange(camera.width, dtype=np.float32) - camera.u0) * pixel - camera.shift(z)
        band = np.zeros(x.shape, np.uint8)
        for edge in self.edges:
            band += x > edge
        kinds = self.kinds[band]

        tone = self._texture(x, z, pixel, kinds)
        cover = self._markings(x, z, pixel, deep) * (kinds == ROAD)
        size = 2 * max(1, round(camera.height / 128)) + 1
        shadow = cv2.GaussianBlur(frame.shadow[first:], (size, size), 0)
        sunlight = 1.0 - shadow * np.float32((1.0 - light.ambient) / 255)
        clear = light.clear(z)
        sunlight *= clear
        for channel in range(3):
            plane = self.colours[:, channel][band]
            plane *= tone
            plane += cover * (self.white - plane)
            plane *= sunlight
            plane += light.haze[channel] * (1.0 - clear)
            frame.image[channel, first:] = plane
        frame.label[first:] = kinds

    def _texture(self, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        # Far rows undersample the noise: its contrast is faded instead of left to flicker.
        tone = noise("blotch", x * 16.0 + self.offset, z * 5.0) * np.minimum(1.0, 0.25 / pixel)
        leaf = noise("leaf", x * 40.0 + self.offset, z * 18.0)
        grain = np.where(kinds == TERRAIN, 2.2 * leaf, noise("grain", x * 70.0 + self.offset, z * 45.0))
        tone += grain * (np.minimum(1.0, 0.06 / pixel) + 0.15)
        tone *= self.grain
        tone += 1.0
        return tone

    def _markings(self, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, deep: np.ndarray) -> np.ndarray:
        """Share of each pixel that is painted."""
        cover = np.zeros(x.shape, np.float32)
        dashes = _line(_to_nearest(z + self.phase, self.period), self.dash, deep)
        for line_x, solid in self.lines:
            line = _line(np.abs(x - line_x), self.line_width, pixel) * (1.0 if solid else dashes)
            np.maximum(cover, line, out=cover)
        if self.crossing:
            near, far, stripe = self.crossing
            stripes = _line(_to_nearest(x, 2 * stripe), stripe, pixel)
            stripes *= _line(np.abs(z - (near + far) / 2), far - near, deep)
            stripes *= (x > self.left + 0.3) & (x < self.right - 0.3)
            np.maximum(cover, stripes, out=cover)
        return cover


def _to_nearest(at: np.ndarray, period: float) -> np.ndarray:
    """Distance to the nearest multiple of ``period``."""
    cell = at * (1.0 / period)
    return np.abs(cell - np.rint(cell)) * period


def _line(distance: np.ndarray, width: float, pixel: np.ndarray) -> np.ndarray:
    """Share of a pixel that a line covers whose centre is ``distance`` away (all metres)."""
    density = 1.0 / pixel
    covered = distance * -density
    covered += width / 2 * density + 0.5
    return np.clip(covered, 0.0, np.minimum(1.0, width * density), out=covered)


def paint_backdrop(frame: Frame, rng: np.random.Generator) -> None:
    """Sky with clouds, and a hazy line of trees along the horizon."""
    camera, light = frame.camera, frame.light
    offset, rows = int(rng.integers(4096)), int(camera.v0) + 3
    above = (rows - np.arange(rows, dtype=np.float32))[:, None] / camera.focal
    columns = (np.arange(camera.width, dtype=np.float32)[None] - camera.u0) / camera.focal
    # A flat layer of cloud: its pattern grows towards the zenith and is squeezed at the horizon.
    distance = rng.uniform(24, 72) / (above + 0.12)
    cover = noise("blotch", columns * distance + offset, distance)
    cover = np.clip((cover + rng.uniform(-0.3, 0.36)) * 1.6, 0.0, 1.0) * np.clip(above * 6.0, 0.15, 0.95)
    rise = np.clip(above * 1.9, 0.0, 1.0) ** 0.7
    for channel in range(3):
        sky = light.horizon[channel] + rise * (light.zenith[channel] - light.horizon[channel])
        frame.image[channel, :rows] = sky + cover * (light.cloud[channel] - sky)
    frame.label[:rows] = SKY

    for height in np.sort(rng.uniform(0.015, 0.075, int(rng.integers(1, 3))))[::-1]:  # trees
        bearing = columns[:, ::2] * 100.0 + rng.uniform(0, 4096)
        skyline = 0.75 + 0.45 * noise("blotch", bearing * 3.0, 0.0) + 0.25 * noise("leaf", bearing * 6.0, 0.0)
        top = np.maximum(skyline[0], 0.15) * height * camera.focal
        canvas = Canvas(frame, (0.0, -float(top.max()), camera.width, 4.0), (0.0, camera.v0))
        outline = [*np.stack([np.arange(len(top)) * 2.0, -top], axis=1), (camera.width, -top[-1])]
        canvas.polygon([*outline, (camera.width, 4.0), (0.0, 4.0)], rng.uniform((45, 75, 35), (95, 115, 75)))
        canvas.grain(0.18, 1.0, "leaf")
        canvas.paste(VEGETATION, 120.0 - 400.0 * height, 0.5 + 0.5 * light.ambient)
