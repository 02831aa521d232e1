"""Cars and vans: an extruded body and a tapering cabin, projected face by face."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .canvas import CAR, Canvas, Frame, Light, Thing

# Share of all cars, length, height of the body side, total height, and where the cabin starts and ends
# (shares of the length) at its foot and at the roof.
_SHAPES = (
    (0.35, 3.9, 0.92, 1.48, (0.01, 0.74, 0.08, 0.56)),  # hatchback
    (0.35, 4.6, 0.92, 1.44, (0.13, 0.73, 0.27, 0.56)),  # sedan
    (0.2, 4.5, 1.08, 1.75, (0.01, 0.72, 0.05, 0.58)),  # estate
    (0.1, 5.0, 1.15, 2.1, (0.0, 0.86, 0.02, 0.72)),  # van
)
_GLASS, _PLATE, _TYRE, _DARK = np.array([38.0, 46.0, 56.0]), (215, 212, 192), 24.0, 32.0
_ANGLES = np.linspace(0, 2 * np.pi, 14, endpoint=False)
_WHEEL = np.stack([np.zeros(14), np.sin(_ANGLES), np.cos(_ANGLES)], axis=1)

Polygon = tuple[np.ndarray, np.ndarray | Sequence[float] | float]  # (N, 3) corners in car coordinates, colour


class Car(Thing):
    """yaw: radians, 0 drives away from the camera, pi comes towards it. Car coordinates: x to the car's
    right, y up, z ahead, from the centre of its footprint."""

    def __init__(self, rng: np.random.Generator, x: float, z: float, yaw: float) -> None:
        shape = _SHAPES[rng.choice(len(_SHAPES), p=[shape[0] for shape in _SHAPES])]
        _, length, self.waist, height, self.cabin = shape
        self.length, self.width = length * rng.uniform(0.94, 1.08), rng.uniform(1.68, 1.92)
        cos, sin = math.cos(yaw), math.sin(yaw)
        self.turn = np.array([(cos, 0.0, -sin), (0.0, 1.0, 0.0), (sin, 0.0, cos)])
        super().__init__(x, z, abs(sin) * self.length / 2 + abs(cos) * self.width / 2, height)
        self.near = self.z - abs(cos) * self.length / 2 - abs(sin) * self.width / 2
        grey = rng.uniform(25, 235) + rng.uniform(-5, 5, 3)
        self.colour = grey if rng.random() < 0.55 else rng.uniform(20, 215, 3)
        self.tint, self.lights_on = rng.uniform(0.6, 1.5), rng.random() < 0.35

    def cast(self, frame: Frame) -> None:
        corners = [(x * self.width / 2, 0.0, z * self.length / 2) for x in (-1, 1) for z in (-1, 1)]
        footprint = self._place(np.array(corners))[:, [0, 2]]
        frame.cast(footprint, 0.0, 0.6 * self.height)
        frame.cast(0.75 * footprint + 0.25 * footprint.mean(axis=0), 0.0, self.height)

    def paint(self, frame: Frame, sunlit: float) -> None:
        camera = frame.camera
        eye = self.turn @ (-self.x - float(camera.shift(self.z)), camera.eye, -self.z)
        polygons = self._polygons(frame.light, eye)
        pixels = camera.project(self._place(np.concatenate([points for points, _ in polygons])))
        canvas = Canvas(frame, (*pixels.min(axis=0), *pixels.max(axis=0)))
        start = 0
        for points, colour in polygons:
            canvas.polygon(pixels[start : start + len(points)], colour)
            start += len(points)
        canvas.grain(0.05, max(1.0, canvas.rows / 40))
        canvas.paste(CAR, self.near, sunlit)

    def _place(self, points: np.ndarray) -> np.ndarray:
        return points @ self.turn + (self.x, 0.0, self.z)

    def _polygons(self, light: Light, eye: np.ndarray) -> list[Polygon]:
        """What is seen of the car from ``eye``, hidden parts before those that hide them."""
        length, low, high, w = self.length, self.waist, self.height, self.width / 2
        sky, dim = light.horizon, 0.35 + 0.65 * light.ambient
        rear, front = -length / 2, length / 2
        axles = (rear + 0.19 * length, front - 0.18 * length)
        polygons: list[Polygon] = []
        # Side outlines (z, y, half width): bumper, boot, bonnet, bumper; then the cabin.
        body = [
            (rear + 0.06, 0.24, w), (rear, 0.42, w), (rear + 0.02, low - 0.08, w), (rear + 0.12, low, w),
            (front - 0.28 * length, low, w), (front - 0.12, low - 0.2, w), (front, 0.52, w),
            (front - 0.06, 0.24, w),
        ]  # fmt: skip
        on_side: list[Polygon] = []
        for z in axles:
            for radius, ink in ((0.4, 0.6 * _DARK), (0.33, _TYRE), (0.2, 150.0 * dim), (0.07, _DARK)):
                on_side.append((np.array((w, 0.33, z)) + radius * _WHEEL, ink))
        polygons += self._prism(light, eye, body, on_side, {
            1: [((0.02, 0.2, 0.4, 0.9), (225, 40, 35) if self.lights_on else (150, 22, 25)),
                ((0.36, 0.64, 0.3, 0.6), _PLATE), ((0.01, 0.99, 0.0, 0.18), _DARK)],
            5: [((0.02, 0.22, 0.25, 0.85), (255, 250, 225) if self.lights_on else (195, 200, 205)),
                ((0.26, 0.74, 0.05, 0.7), _DARK), ((0.38, 0.62, 0.05, 0.35), _PLATE)],
        })  # fmt: skip
        b0, b1, t0, t1 = (rear + share * length for share in self.cabin)
        cabin = [(b0, low, w - 0.05), (t0, high, w - 0.24), (t1, high, w - 0.24), (b1, low, w - 0.05)]
        glass = (_GLASS * self.tint + sky * 0.12) * dim
        right = np.array([(x, y, z) for z, y, x in cabin])[[0, 3, 2, 1]]
        panes = ((0.06, 0.47), (0.52, 0.93))
        windows: list[Polygon] = [(_inset(right, a, b, 0.08, 0.85), glass) for a, b in panes]
        return polygons + self._prism(light, eye, cabin, windows, {
            0: [((0.06, 0.94, 0.08, 0.86), glass + 0.05 * sky)],
            2: [((0.06, 0.94, 0.14, 0.92), glass + 0.17 * sky)],
        })  # fmt: skip

    def _prism(
        self, light: Light, eye: np.ndarray, outline: list[tuple[float, float, float]],
        on_side: list[Polygon], on_strips: dict[int, list],
    ) -> list[Polygon]:  # fmt: skip
        """The visible of both sides of a part, and of the strips across it from the rear to the front.

        on_side: what is painted on the right side. on_strips: by number of the strip, shares (a, b, low,
        high) and colours of what is painted on it; the first of several is a lamp and mirrored."""
        rise, lean = outline[1][1] - outline[0][1], outline[0][2] - outline[1][2]
        polygons: list[Polygon] = []

        def seen(outward: tuple[float, float, float], corners: np.ndarray, bright: float = 1.0) -> bool:
            """Adds a face with this normal if it is seen."""
            if np.dot(outward, eye - corners[0]) <= 0:
                return False
            shade = light.shade(np.dot(outward, self.turn) / math.hypot(*outward))
            polygons.append((corners, self.colour * (bright * (0.12 + 0.88 * shade))))
            return True

        for sign in (-1, 1):
            side = np.array([(sign * w, y, z) for z, y, w in outline])
            if seen((sign * rise, lean, 0.0), side):
                polygons.extend((points * (sign, 1, 1), ink) for points, ink in on_side)
        for index, ((z0, y0, w0), (z1, y1, w1)) in enumerate(zip(outline, outline[1:], strict=False)):
            strip = np.array([(-w0, y0, z0), (w0, y0, z0), (w1, y1, z1), (-w1, y1, z1)])
            if seen((0.0, z1 - z0, y0 - y1), strip, 0.55 if y0 + y1 < 0.8 else 1.0):
                painted = [(_inset(strip, *shares), ink) for shares, ink in on_strips.get(index, [])]
                polygons += painted
                if len(painted) > 1:
                    polygons.append((painted[0][0] * (-1, 1, 1), painted[0][1]))
        return polygons


def _inset(quad: np.ndarray, a: float, b: float, low: float, high: float) -> np.ndarray:
    """Part of a quad (bottom start, bottom end, top end, top start) between shares of its two directions."""
    start, end = quad[0] + low * (quad[3] - quad[0]), quad[1] + low * (quad[2] - quad[1])
    top_start, top_end = quad[0] + high * (quad[3] - quad[0]), quad[1] + high * (quad[2] - quad[1])
    across, top = end - start, top_end - top_start
    return np.array([start + a * across, start + b * across, top_start + b * top, top_start + a * top])
