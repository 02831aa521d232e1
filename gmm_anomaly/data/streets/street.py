"""The street itself, lanes, kerbs, sidewalks and verges on a flat ground, and the sky and skyline behind it."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import BUILDING, CIRCLE, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION, Frame, noise


class Street:
    """Cross-section of a street as seen from the driver's lane, and what is painted on it; x, z in metres.

    edges: ascending x between bands; kinds, colours: label and RGB per band, one more than edges. left, right:
    road edges. walks: (x0, x1) of both sidewalks. walls: x of both wall lines. lanes: (x, 1 ahead or -1
    oncoming). crossing: (nearest z, farthest z, width of a stripe), or None."""

    def __init__(self, rng: np.random.Generator) -> None:
        lane = rng.uniform(2.9, 3.6)
        oncoming, same = int(rng.integers(0, 3)), int(rng.integers(1, 3))
        middle = -(rng.integers(0, same) + 0.5) * lane + rng.normal(0, 0.25)  # x between the two directions
        self.parking = (rng.random() < 0.5, rng.random() < 0.5)
        strips = [2.2 if parked else rng.uniform(0.1, 0.6) for parked in self.parking]
        self.left, self.right = middle - oncoming * lane - strips[0], middle + same * lane + strips[1]
        self.lanes = [(middle - (i + 0.5) * lane, -1) for i in range(oncoming)]
        self.lanes += [(middle + (i + 0.5) * lane, 1) for i in range(same)]

        road, kerb = rng.uniform(70, 135) + rng.uniform(-5, 5, 3), rng.uniform(120, 185) + rng.uniform(-8, 8, 3)
        # Sidewalks range from asphalt like the road to light, beige or reddish slabs.
        walk = rng.uniform(85, 175) + rng.uniform(0, 18) * np.array([1.0, 0.1, -1.0]) + rng.uniform(-5, 5, 3)
        if rng.random() < 0.2:
            walk *= (1.08, 0.85, 0.78)
        grass = rng.uniform((80, 105, 45), (150, 150, 85))
        bands: list[tuple[float, int, np.ndarray]] = []
        self.walks: list[tuple[float, float]] = []
        self.walls: list[float] = []
        for side, x in ((-1, self.left), (1, self.right)):
            garden = grass * rng.uniform(0.85, 1.15)
            for width, kind, colour in (
                (rng.uniform(0.14, 0.28), SIDEWALK, kerb),
                (rng.uniform(0.8, 3.0) if rng.random() < 0.45 else 0.0, TERRAIN, grass),
                (rng.uniform(1.8, 4.2), SIDEWALK, walk),
                (rng.uniform(0.6, 4.0) if rng.random() < 0.5 else 0.0, TERRAIN, garden),
            ):
                if width:
                    bands.append((x, kind, colour))
                    if colour is walk:
                        self.walks.append((min(x, x + side * width), max(x, x + side * width)))
                    x += side * width
            self.walls.append(x)
            bands.append((x, TERRAIN, grass * rng.uniform(0.8, 1.1)))
        bands.sort(key=lambda band: band[0])
        self.edges = [band[0] for band in bands]
        bands.insert(self.edges.index(self.right), (0.0, ROAD, road))
        self.kinds = np.array([band[1] for band in bands], np.uint8)
        self.colours = np.float32([band[2] for band in bands])

        self._sample_paint(rng, middle, lane, oncoming, same)
        self.slab, self.grain = rng.uniform(0.4, 1.3), rng.uniform(0.06, 0.16)
        self.offset = rng.integers(0, 4096, 2)

    def _sample_paint(
        self, rng: np.random.Generator, middle: float, lane: float, oncoming: int, same: int
    ) -> None:
        """Lines along the street (x, solid, yellow), a crossing, and patches of another brightness: repairs,
        stains and manhole covers."""
        self.white = np.full(3, rng.uniform(195, 250))
        self.yellow = rng.uniform((200, 160, 40), (235, 185, 90))
        self.line_width, self.dash, self.phase = rng.uniform((0.11, 2.0, 0), (0.18, 4.5, 9))
        self.period = self.dash + rng.uniform(2.5, 6.0)
        lines = [(middle + i * lane, False, False) for i in range(1 - oncoming, same) if i]
        if oncoming:
            yellow, style = rng.random() < 0.25, rng.choice(["dashed", "solid", "double"], p=[0.6, 0.2, 0.2])
            offsets = (-self.line_width, self.line_width) if style == "double" else (0.0,)
            lines += [(middle + offset, style != "dashed", yellow) for offset in offsets]
        if rng.random() < 0.75:
            inset = [0.0 if parked else 0.1 for parked in self.parking]
            lines += [(middle - oncoming * lane + inset[0], True, False)]
            lines += [(middle + same * lane - inset[1], True, False)]
        self.lines = lines
        near = np.exp(rng.uniform(np.log(7), np.log(35)))
        crossing = (near, near + rng.uniform(2.5, 4.0), rng.uniform(0.4, 0.6))
        self.crossing = crossing if rng.random() < 0.3 else None
        self.patches: list[tuple[np.ndarray, float]] = []  # ground points (x, z) and brightness
        for _ in range(int(rng.integers(1, 8))):
            x, z = rng.uniform(self.left, self.right), np.exp(rng.uniform(np.log(4), np.log(50)))
            if rng.random() < 0.35:
                self.patches.append((CIRCLE * rng.uniform(0.28, 0.4) + (x, z), rng.uniform(0.45, 0.75)))
            else:
                half, depths = rng.uniform(0.15, 1.3), z + np.linspace(0, rng.uniform(0.5, 8.0), 6)
                x = min(max(x, self.left + half), self.right - half)
                outline = np.stack([np.repeat([x - half, x + half], 6), [*depths, *depths[::-1]]], axis=1)
                self.patches.append((outline, rng.uniform(0.72, 1.2)))

    def paint(self, frame: Frame) -> None:
        """Trace every pixel below the horizon back to its (x, z) and colour it there. Shadows that were cast
        before lie on it."""
        camera, light = frame.camera, frame.light
        first = int(camera.v0) + 1
        below = np.maximum(np.arange(first, camera.height, dtype=np.float32) - np.float32(camera.v0), 0.4)[:, None]
        z = np.float32(camera.focal * camera.eye) / below
        pixel = z / np.float32(camera.focal)  # metres per pixel, sideways
        deep = z * pixel / np.float32(camera.eye)  # metres per pixel, along the street
        columns = np.arange(camera.width, dtype=np.float32) - np.float32(camera.u0)
        x = columns * pixel - np.float32(camera.shift(z))

        band = np.zeros(x.shape, np.uint8)
        for edge in self.edges:
            band += x > edge
        kinds = self.kinds[band]
        tone = self._texture(x, z, pixel, deep, kinds)
        factor = np.full(frame.label.shape, 128, np.uint8)
        for outline, bright in self.patches:
            points = camera.project(np.insert(np.maximum(outline, (-np.inf, 1.5)), 1, 0.0, axis=1))
            cv2.fillPoly(factor, [np.rint(np.clip(points, -8000, 8000)).astype(np.int32)], int(128 * bright))
        tone *= factor[first:] * np.float32(1 / 128)
        cover, yellow = self._markings(x, z, pixel, deep)
        cover *= kinds == ROAD
        walled = frame.walled(x, 0.0, z).astype(np.uint8) * np.uint8(255)
        size = max(1, round(camera.height / 128)) * 2 + 1
        shadow = cv2.GaussianBlur(np.maximum(frame.shadow[first:], walled), (size, size), 0)
        clear = light.clear(z)
        sunlight = (1.0 - np.float32((1.0 - light.ambient) / 255) * shadow) * clear
        for channel in range(3):
            plane = self.colours[:, channel][band]
            plane *= tone
            paint = np.float32(self.white[channel])
            if yellow is not None:
                paint = paint + yellow * np.float32(self.yellow[channel] - self.white[channel])
            plane += cover * (paint - plane)
            plane *= sunlight
            plane += light.haze[channel] * (1.0 - clear)
            frame.image[channel, first:] = plane
        frame.label[first:] = kinds

    def _texture(
        self, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, deep: np.ndarray, kinds: np.ndarray
    ) -> np.ndarray:
        ox, oz = self.offset
        # Far rows undersample the noise: its contrast is faded instead of left to flicker.
        tone = noise("blotch", x * 16.0 + ox, z * 5.0 + oz) * np.minimum(1.0, 0.25 / pixel)
        grain = noise("grain", x * 70.0 + oz, z * 45.0 + ox)
        grain = np.where(kinds == TERRAIN, 2.2 * noise("leaf", x * 40.0 + ox, z * 18.0 + oz), grain)
        tone += grain * (np.minimum(1.0, 0.06 / pixel) + np.float32(0.15))
        tone *= np.float32(self.grain)
        tone += 1.0
        slabs = (0.5 - np.abs(np.mod(a / np.float32(self.slab), 1.0) - 0.5) for a in (x, z))
        joints = (_line(a * np.float32(self.slab), 0.035, size) for a, size in zip(slabs, (pixel, deep), strict=True))
        tone *= 1.0 - np.float32(0.35) * np.maximum(*joints) * (kinds == SIDEWALK)
        for gutter in (self.left + 0.03, self.right - 0.03):
            tone *= 1.0 - np.float32(0.4) * _line(np.abs(x - np.float32(gutter)), 0.16, pixel)
        return tone

    def _markings(
        self, x: np.ndarray, z: np.ndarray, pixel: np.ndarray, deep: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Share of each pixel that is painted, and the share that is yellow where any is."""
        cover = np.zeros(x.shape, np.float32)
        yellow = None
        distance = np.abs(np.mod(z + np.float32(self.phase), np.float32(self.period)) - np.float32(self.period / 2))
        dashes = _line(distance, self.dash, deep)
        for line_x, solid, is_yellow in self.lines:
            line = _line(np.abs(x - np.float32(line_x)), self.line_width, pixel)
            if not solid:
                line *= dashes
            np.maximum(cover, line, out=cover)
            if is_yellow:
                yellow = line if yellow is None else np.maximum(yellow, line)
        if self.crossing:
            near, far, stripe = self.crossing
            distance = np.abs(np.mod(x / np.float32(2 * stripe), 1.0) - np.float32(0.5)) * np.float32(2 * stripe)
            stripes = _line(distance, stripe, pixel)
            stripes *= _line(np.abs(z - np.float32((near + far) / 2)), far - near, deep)
            stripes *= (x > self.left + 0.3) & (x < self.right - 0.3)
            np.maximum(cover, stripes, out=cover)
        ox, oz = self.offset
        cover *= np.float32(0.8) + np.float32(0.2) * noise("blotch", x * 30.0 + oz, z * 30.0 + ox)
        return cover, yellow


def _line(distance: np.ndarray, width: float, pixel: np.ndarray) -> np.ndarray:
    """Share of a pixel that a line covers whose centre is ``distance`` away (all metres)."""
    covered = (np.float32(width / 2) - distance) / pixel + np.float32(0.5)
    return np.clip(covered, 0.0, np.minimum(np.float32(1.0), np.float32(width) / pixel), out=covered)


def paint_backdrop(frame: Frame, rng: np.random.Generator) -> None:
    """Sky with clouds, and a hazy line of trees, hills or roofs along the horizon."""
    camera, light = frame.camera, frame.light
    offset, rows = rng.integers(0, 4096, 2), int(camera.v0) + 3
    cloud_scale, cloudy = rng.uniform(24, 72), 1.2 * rng.uniform(0.25, 0.8) - 0.6
    above = (np.float32(rows) - np.arange(rows, dtype=np.float32))[:, None] / np.float32(camera.focal)
    columns = (np.arange(camera.width, dtype=np.float32)[None] - np.float32(camera.u0)) / np.float32(camera.focal)
    # A flat layer of cloud: its pattern grows towards the zenith and is squeezed at the horizon. Clouds are
    # soft, so every other pixel of it is enough.
    distance = np.float32(cloud_scale) / (above[::2] + np.float32(0.12))
    cover = noise("blotch", columns[:, ::2] * distance + offset[0], distance + offset[1], True)
    cover = np.clip((cover + np.float32(cloudy)) * 1.6, 0.0, 1.0) * np.clip(above[::2] * 6.0, 0.15, 0.95)
    cover = cv2.resize(cover, (camera.width, rows), interpolation=cv2.INTER_LINEAR)
    glow: np.ndarray | float = 0.0
    bearing = np.arctan2(light.sun[0], light.sun[2])
    if abs(bearing) < 1.2 and light.ambient < 0.7:
        glow = 45.0 * np.exp(-3.0 * (columns - np.float32(np.tan(bearing))) ** 2) * np.exp(-3.0 * above)
    rise = np.clip(above * 1.9, 0.0, 1.0) ** 0.7
    for channel, warmth in enumerate((1.0, 0.9, 0.65)):
        sky = np.float32(light.horizon[channel]) + rise * np.float32(light.zenith[channel] - light.horizon[channel])
        sky = sky + glow * np.float32(warmth)
        frame.image[channel, :rows] = sky + cover * (np.float32(light.cloud[channel]) - sky)
    frame.label[:rows] = SKY

    strips = int(rng.integers(1, 3))
    for index, height in enumerate(np.sort(rng.uniform(0.015, 0.075, strips))[::-1]):
        bearing = columns[0] * 100.0 + rng.integers(0, 4096)
        trees = rng.random() < 0.6
        if trees:
            colour = rng.uniform((45, 75, 35), (95, 115, 75))
            skyline = 0.75 + 0.45 * noise("blotch", bearing * 3.0, np.zeros(1))
            skyline += 0.25 * noise("leaf", bearing * 6.0, np.zeros(1))
        else:
            colour = rng.uniform(80, 170) + rng.uniform(-20, 20, 3)
            skyline = 0.75 + 0.6 * noise("grain", np.floor(bearing / 6.0) * 37.0, np.full(1, 5.0))
        top = camera.v0 - np.maximum(skyline, 0.15) * height * camera.focal
        place = slice(max(0, int(top.min())), int(camera.v0) + 4)
        y = np.arange(place.start, place.stop, dtype=np.float32)[:, None]
        cover = np.clip(y - np.float32(top) + np.float32(0.5), 0.0, 1.0)
        clear = float(light.clear(90.0 + 60.0 * (strips - 1 - index)))
        texture = noise("leaf" if trees else "blotch", bearing * 5.0, y * (512.0 / camera.focal))
        shade = (1.0 + np.float32(0.18) * texture) * np.float32((0.5 + 0.5 * light.ambient) * clear)
        for channel in range(3):
            region = frame.image[channel, place]
            region += cover * (shade * np.float32(colour[channel]) + light.haze[channel] * (1.0 - clear) - region)
        frame.label[place][cover > 0.5] = VEGETATION if trees else BUILDING
