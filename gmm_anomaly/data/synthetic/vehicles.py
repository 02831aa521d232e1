"""Cars, estates, vans: an extruded body and a tapering cabin, projected face by face."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .canvas import Canvas, Frame
from .labels import CAR

Face = tuple[np.ndarray, np.ndarray]  # corners (n, 3) in car coordinates, RGB
Group = tuple[np.ndarray, np.ndarray, Callable[[], list[Face]] | None]  # a face and what is painted on it

# name: length, height of the body side, total height, and where the cabin starts and ends (shares of the
# length) at its foot and at the roof
_SHAPES = {
    "hatch": (3.9, 0.92, 1.48, (0.01, 0.74), (0.08, 0.56)),
    "sedan": (4.6, 0.92, 1.44, (0.13, 0.73), (0.27, 0.56)),
    "estate": (4.7, 0.93, 1.5, (0.01, 0.72), (0.06, 0.56)),
    "suv": (4.5, 1.08, 1.75, (0.01, 0.72), (0.05, 0.58)),
    "van": (5.0, 1.15, 2.1, (0.0, 0.86), (0.02, 0.72)),
}
_GLASS = np.array([38.0, 46.0, 56.0])
_ANGLES = np.linspace(0, 2 * np.pi, 14, endpoint=False)
_WHEEL = np.stack([np.zeros(14), np.sin(_ANGLES), np.cos(_ANGLES)], axis=1)
_TYRE, _RIM, _DARK = np.full(3, 24.0), np.full(3, 150.0), np.full(3, 32.0)


@dataclass(frozen=True)
class Car:
    """x, z: centre on the ground. yaw: radians, 0 drives away from the camera, pi comes towards it."""

    x: float
    z: float
    yaw: float
    shape: str
    width: float
    stretch: float
    colour: np.ndarray
    tint: float
    lights_on: bool

    @property
    def length(self) -> float:
        return _SHAPES[self.shape][0] * self.stretch

    @property
    def reach(self) -> tuple[float, float]:
        half = abs(np.sin(self.yaw)) * self.length / 2 + abs(np.cos(self.yaw)) * self.width / 2
        return float(half), _SHAPES[self.shape][2]

    @property
    def near(self) -> float:
        """Depth of the nearest part."""
        return float(
            self.z - abs(np.cos(self.yaw)) * self.length / 2 - abs(np.sin(self.yaw)) * self.width / 2
        )

    def cast(self, frame: Frame) -> None:
        height = _SHAPES[self.shape][2]
        half, length = self.width / 2, self.length / 2
        step = np.array(frame.light.shadow_step())
        base = self._place(np.array([(x, 0.0, z) for x in (-half, half) for z in (-length, length)]))[
            :, [0, 2]
        ]
        roof = self._place(np.array([(x, 0.0, z) for x in (-half, half) for z in (-length, 0.4 * length)]))[
            :, [0, 2]
        ]
        frame.shade_ground(
            np.concatenate([base, base + 0.6 * height * step, roof * 1.0 + height * step]), 215
        )
        frame.shade_ground(base, 255)

    def paint(self, frame: Frame, sunlit: float) -> None:
        camera = frame.camera
        half, height = self.reach
        u, v = camera.ground(self.x, self.near if self.near > 0.8 else self.z)
        scale = camera.scale(max(self.near, 0.8))
        far = camera.ground(self.x, self.z + self.length / 2)[0]
        if (
            self.near < 0.8
            or max(u, far) + 1.3 * half * scale < 0
            or min(u, far) - 1.3 * half * scale > camera.width
        ):
            return
        groups = self._groups(frame)
        pixels = camera.project(self._place(np.concatenate([points for points, _, _ in groups])))
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        canvas = Canvas(frame, (low[0], low[1], high[0], high[1]))
        if canvas.empty:
            return
        detailed = scale > 9.0
        at = 0
        for points, colour, decals in groups:
            flat = pixels[at : at + len(points)]
            at += len(points)
            if not _faces_camera(flat):
                continue
            canvas.polygon(flat, colour)
            painted = decals() if decals is not None and detailed else []
            if painted:
                corners = camera.project(self._place(np.concatenate([face for face, _ in painted])))
                start = 0
                for face, ink in painted:
                    canvas.polygon(corners[start : start + len(face)], ink)
                    start += len(face)
        canvas.grain(
            0.05, max(1.0, (high[1] - low[1]) / 40), (int(self.z * 31) & 1023, int(self.x * 77) & 1023)
        )
        canvas.paste(CAR, self.near, sunlit)

    def _place(self, points: np.ndarray) -> np.ndarray:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return points @ np.array([(cos, 0.0, -sin), (0.0, 1.0, 0.0), (sin, 0.0, cos)]) + (self.x, 0.0, self.z)

    def _shade(self, frame: Frame, normal: tuple[float, float, float]) -> float:
        x, y, z = normal
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return 0.12 + 0.88 * frame.light.shade((x * cos + z * sin, y, z * cos - x * sin))

    def _groups(self, frame: Frame) -> list[Group]:
        """The car's outer faces, far ones before near ones, and what is painted on each."""
        _, waist, height, low_cabin, high_cabin = _SHAPES[self.shape]
        length, w = self.length, self.width / 2
        rear, front = -length / 2, length / 2
        wheels = (rear + 0.19 * length, front - 0.18 * length)
        paint, sky = self.colour, frame.light.horizon.astype(np.float64)
        groups: list[Group] = []
        for z in wheels:  # treads, seen under the body from behind or ahead
            for x in (-w + 0.02, w - 0.24):
                for end, order in ((z - 0.3, 1), (z + 0.3, -1)):
                    tread = [(x, 0.0, end), (x + 0.22, 0.0, end), (x + 0.22, 0.4, end), (x, 0.4, end)]
                    groups.append((np.array(tread[::order]), _TYRE, None))

        # Side outline: rear bumper, boot, bonnet, front bumper.
        outline = [
            (rear + 0.06, 0.24),
            (rear, 0.42),
            (rear + 0.02, waist - 0.08),
            (rear + 0.12, waist),
            (front - 0.28 * length, waist),
            (front - 0.12, waist - 0.2),
            (front, 0.52),
            (front - 0.06, 0.24),
        ]
        for sign in (-1, 1):
            colour = paint * self._shade(frame, (float(sign), 0.0, 0.0))
            side = np.array([(sign * w, y, z) for z, y in outline])[::-sign]
            groups.append((side, colour, partial(self._side, sign * w, rear, front, wheels, colour)))

        strips: list[tuple[int, tuple[float, float, float], float]] = [
            (0, (0.0, -0.3, -1.0), 0.55),
            (1, (0.0, 0.0, -1.0), 1.0),
            (2, (0.0, 0.9, -0.3), 1.0),
            (3, (0.0, 1.0, 0.0), 1.0),
            (4, (0.0, 0.97, 0.2), 1.0),
            (5, (0.0, 0.5, 0.85), 1.0),
            (6, (0.0, -0.2, 1.0), 0.55),
        ]
        for index, normal, dim in strips:
            (z0, y0), (z1, y1) = outline[index], outline[index + 1]
            quad = np.array([(-w, y0, z0), (w, y0, z0), (w, y1, z1), (-w, y1, z1)])
            decals = None
            if index == 1:
                decals = partial(self._rear, w, z0, waist)
            elif index == 5:
                decals = partial(self._nose, quad[[1, 0, 3, 2]])
            groups.append((quad, paint * (self._shade(frame, normal) * dim), decals))
        return groups + self._cabin(frame, rear, length, waist, height, low_cabin, high_cabin, sky)

    def _side(
        self, x: float, rear: float, front: float, wheels: tuple[float, float], colour: np.ndarray
    ) -> list[Face]:
        waist = _SHAPES[self.shape][1]
        panels = [(_sheet(x, rear + 0.1, front - 0.1, 0.24, 0.36), colour * 0.6)]
        for share in (0.36, 0.56, 0.73):
            seam = rear + share * (front - rear)
            panels.append((_sheet(x, seam - 0.015, seam + 0.015, 0.35, waist), colour * 0.55))
        for z in wheels:
            for radius, ink in ((0.4, _DARK * 0.6), (0.33, _TYRE), (0.2, _RIM), (0.07, _DARK)):
                panels.append((_wheel(x, z, radius), ink))
        return panels

    def _cabin(
        self,
        frame: Frame,
        rear: float,
        length: float,
        waist: float,
        height: float,
        low: tuple[float, float],
        high: tuple[float, float],
        sky: np.ndarray,
    ) -> list[Group]:
        w, top = self.width / 2 - 0.05, self.width / 2 - 0.24
        b0, b1, t0, t1 = (rear + share * length for share in (*low, *high))
        corners = {
            "left": [(-w, waist, b1), (-w, waist, b0), (-top, height, t0), (-top, height, t1)],
            "right": [(w, waist, b0), (w, waist, b1), (top, height, t1), (top, height, t0)],
            "rear": [(-w, waist, b0), (w, waist, b0), (top, height, t0), (-top, height, t0)],
            "front": [(w, waist, b1), (-w, waist, b1), (-top, height, t1), (top, height, t1)],
            "roof": [(-top, height, t0), (top, height, t0), (top, height, t1), (-top, height, t1)],
        }
        normals = {
            "left": (-0.95, 0.3, 0.0),
            "right": (0.95, 0.3, 0.0),
            "rear": (0.0, 0.4, -0.9),
            "front": (0.0, 0.6, 0.8),
            "roof": (0.0, 1.0, 0.0),
        }
        glass = (_GLASS * self.tint + sky * 0.12) * (0.35 + 0.65 * frame.light.ambient)
        groups: list[Group] = []
        for name, points in corners.items():
            quad = np.array(points)
            decals = partial(self._panes, name, quad, glass, sky) if name != "roof" else None
            groups.append((quad, self.colour * self._shade(frame, normals[name]), decals))
        return groups

    def _panes(self, name: str, quad: np.ndarray, glass: np.ndarray, sky: np.ndarray) -> list[Face]:
        if name in ("rear", "front"):
            return [
                (_inset(quad, 0.06, 0.94, 0.08, 0.86), glass * 0.8 + sky * (0.1 if name == "rear" else 0.22))
            ]
        spans = ((0.06, 0.47), (0.52, 0.93)) if self.shape != "van" else ((0.55, 0.93),)
        if name == "left":  # its quad runs from front to rear
            spans = tuple((1 - b, 1 - a) for a, b in spans)
        return [(_inset(quad, a, b, 0.08, 0.84), glass) for a, b in spans]

    def _rear(self, w: float, z: float, waist: float) -> list[Face]:
        red = np.array([225.0, 40.0, 35.0]) if self.lights_on else np.array([150.0, 22.0, 25.0])
        decals = []
        for x0, x1 in ((-w + 0.04, -w + 0.36), (w - 0.36, w - 0.04)):
            decals.append((_plate(x0, x1, waist - 0.32, waist - 0.12, z), red))
        decals.append((_plate(-0.26, 0.26, waist - 0.36, waist - 0.24, z), np.array([215.0, 212.0, 190.0])))
        decals.append((_plate(-w + 0.02, w - 0.02, 0.42, 0.5, z), _DARK))
        return decals

    def _nose(self, quad: np.ndarray) -> list[Face]:
        lamp = np.array([255.0, 250.0, 225.0]) if self.lights_on else np.array([195.0, 200.0, 205.0])
        return [
            (_inset(quad, 0.26, 0.74, 0.3, 0.95), _DARK),
            (_inset(quad, 0.02, 0.22, 0.15, 0.75), lamp),
            (_inset(quad, 0.78, 0.98, 0.15, 0.75), lamp),
            (_inset(quad, 0.38, 0.62, 0.65, 0.95), np.array([215.0, 212.0, 195.0])),
        ]


def _faces_camera(flat: np.ndarray) -> bool:
    """Whether a convex face's projected corners run counter-clockwise as seen."""
    (x0, y0), (x1, y1), (x2, y2) = flat[0], flat[1], flat[-2]
    return bool((x1 - x0) * (y2 - y0) < (x2 - x0) * (y1 - y0))


def _sheet(x: float, z0: float, z1: float, y0: float, y1: float) -> np.ndarray:
    return np.array([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)])


def _wheel(x: float, z: float, radius: float) -> np.ndarray:
    return np.array((x, 0.33, z)) + radius * _WHEEL


def _plate(x0: float, x1: float, y0: float, y1: float, z: float) -> np.ndarray:
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])


def _inset(quad: np.ndarray, a: float, b: float, low: float, high: float) -> np.ndarray:
    """Part of a quad (bottom start, bottom end, top end, top start) between shares of its two directions."""
    s, t = np.array([a, b, b, a])[:, None], np.array([low, low, high, high])[:, None]
    return (1 - t) * ((1 - s) * quad[0] + s * quad[1]) + t * ((1 - s) * quad[3] + s * quad[2])


def sample_car(rng: np.random.Generator, x: float, z: float, yaw: float) -> Car:
    shape = str(rng.choice(list(_SHAPES), p=[0.28, 0.26, 0.18, 0.18, 0.1]))
    if rng.random() < 0.55:  # greys, black, white, silver
        colour = rng.uniform(25, 235) + rng.uniform(-5, 5, 3)
    else:
        colour = rng.uniform(20, 215, 3)
    return Car(
        x=x,
        z=z,
        yaw=yaw,
        shape=shape,
        width=float(rng.uniform(1.68, 1.92)),
        stretch=float(rng.uniform(0.94, 1.08)),
        colour=colour,
        tint=float(rng.uniform(0.6, 1.5)),
        lights_on=bool(rng.random() < 0.35),
    )
