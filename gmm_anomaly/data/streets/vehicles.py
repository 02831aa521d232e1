"""Cars, estates and vans: an extruded body and a tapering cabin, projected face by face."""

from __future__ import annotations

import math

import numpy as np

from .canvas import CAR, Canvas, Frame, Thing

# name: share of all cars, length, height of the body side, total height, and where the cabin starts and ends
# (shares of the length) at its foot and at the roof
_SHAPES = {
    "hatch": (0.28, 3.9, 0.92, 1.48, (0.01, 0.74, 0.08, 0.56)),
    "sedan": (0.26, 4.6, 0.92, 1.44, (0.13, 0.73, 0.27, 0.56)),
    "estate": (0.18, 4.7, 0.93, 1.5, (0.01, 0.72, 0.06, 0.56)),
    "suv": (0.18, 4.5, 1.08, 1.75, (0.01, 0.72, 0.05, 0.58)),
    "van": (0.1, 5.0, 1.15, 2.1, (0.0, 0.86, 0.02, 0.72)),
}
_GLASS, _PLATE, _TYRE, _DARK = np.array([38.0, 46.0, 56.0]), np.array([215.0, 212.0, 192.0]), 24.0, 32.0
_ANGLES = np.linspace(0, 2 * np.pi, 14, endpoint=False)
_WHEEL = np.stack([np.zeros(14), np.sin(_ANGLES), np.cos(_ANGLES)], axis=1)

Decal = tuple[np.ndarray, np.ndarray | float]  # (N, 3) corners in car coordinates, colour


class Car(Thing):
    """yaw: radians, 0 drives away from the camera, pi comes towards it. Car coordinates: x to the car's
    right, y up, z ahead, from the centre of its footprint."""

    def __init__(self, rng: np.random.Generator, x: float, z: float, yaw: float) -> None:
        self.shape = str(rng.choice(list(_SHAPES), p=[shape[0] for shape in _SHAPES.values()]))
        _, length, self.waist, height, self.cabin = _SHAPES[self.shape]
        self.length, self.width, self.yaw = length * rng.uniform(0.94, 1.08), rng.uniform(1.68, 1.92), yaw
        cos, sin = math.cos(yaw), math.sin(yaw)
        self.turn = np.array([(cos, 0.0, -sin), (0.0, 1.0, 0.0), (sin, 0.0, cos)])
        super().__init__(x, z, abs(sin) * self.length / 2 + abs(cos) * self.width / 2, height)
        self.near = z - abs(cos) * self.length / 2 - abs(sin) * self.width / 2
        grey = rng.uniform(25, 235) + rng.uniform(-5, 5, 3)
        self.colour = grey if rng.random() < 0.55 else rng.uniform(20, 215, 3)
        self.tint, self.lights_on = rng.uniform(0.6, 1.5), rng.random() < 0.35

    def cast(self, frame: Frame) -> None:
        half, end = self.width / 2, self.length / 2
        corners = [(x, 0.0, z) for x in (-half, half) for z in (-end, end)]
        footprint = self._place(np.array(corners))[:, [0, 2]]
        frame.cast(footprint, 0.0, 0.6 * self.height)
        frame.cast(0.75 * footprint + 0.25 * footprint.mean(axis=0), 0.0, self.height)

    def paint(self, frame: Frame, sunlit: float) -> None:
        camera = frame.camera
        end = self.length / 2
        reach = [(x, y, z) for x in (-1, 1) for y in (0.0, self.height) for z in (-end, end)]
        outer = camera.project(self._place(np.array(reach)))
        canvas = Canvas(frame, (outer.min(axis=0), outer.max(axis=0)))
        eye = np.array([0.0, camera.eye, 0.0])
        for points, colour, decals in self._faces(frame.light.horizon, 0.35 + 0.65 * frame.light.ambient):
            world = self._place(points)
            normal = np.cross(world[-1] - world[0], world[1] - world[0])
            from_eye = world[0] + (float(camera.shift(world[0, 2])), 0.0, 0.0) - eye
            if normal @ from_eye >= 0:
                continue
            shade = 0.12 + 0.88 * frame.light.shade(normal / np.linalg.norm(normal))
            canvas.polygon(camera.project(world), colour * shade)
            if camera.focal > 9.0 * self.near:
                for part, ink in decals:
                    canvas.polygon(camera.project(self._place(part)), ink)
        canvas.grain(0.05, max(1.0, canvas.rows / 40))
        canvas.paste(CAR, self.near, sunlit)

    def _place(self, points: np.ndarray) -> np.ndarray:
        return points @ self.turn + (self.x, 0.0, self.z)

    def _faces(self, sky: np.ndarray, dim: float) -> list[tuple[np.ndarray, np.ndarray, list[Decal]]]:
        """The car's outer faces, hidden ones before those that hide them: corners, colour, and what is painted
        on them. Seen from outside, the corners run counter-clockwise."""
        length, waist, w, paint = self.length, self.waist, self.width / 2, self.colour
        rear, front = -length / 2, length / 2
        wheels = (rear + 0.19 * length, front - 0.18 * length)
        faces: list[tuple[np.ndarray, np.ndarray, list[Decal]]] = []
        for z in wheels:  # treads, seen under the body from behind or ahead
            for x in (-w + 0.13, w - 0.13):
                for side in (-1, 1):
                    faces.append((_upright(x, 0.11 * side, 0.0, 0.4, z - 0.3 * side), np.full(3, _TYRE), []))

        # Side outline: rear bumper, boot, bonnet, front bumper.
        outline = [
            (rear + 0.06, 0.24), (rear, 0.42), (rear + 0.02, waist - 0.08), (rear + 0.12, waist),
            (front - 0.28 * length, waist), (front - 0.12, waist - 0.2), (front, 0.52), (front - 0.06, 0.24),
        ]  # fmt: skip
        dull = paint * (0.55 * dim)
        for sign in (-1, 1):
            sill = np.array([(rear + 0.1, 0.24), (front - 0.1, 0.24), (front - 0.1, 0.36), (rear + 0.1, 0.36)])
            decals: list[Decal] = [(np.insert(sill[:, ::-1], 0, sign * w, axis=1), dull)]
            for share in (0.36, 0.56, 0.73):
                z = rear + share * length
                seam = [(sign * w, y, at) for y, at in ((0.35, z - 0.015), (0.35, z + 0.015),
                                                        (waist, z + 0.015), (waist, z - 0.015))]  # fmt: skip
                decals.append((np.array(seam), dull))
            for z in wheels:
                for radius, ink in ((0.4, 0.6 * _DARK), (0.33, _TYRE), (0.2, 150.0 * dim), (0.07, _DARK)):
                    decals.append((np.array((sign * w, 0.33, z)) + radius * _WHEEL, ink))
            side = np.array([(sign * w, y, z) for z, y in outline])[::-sign]
            faces.append((side, paint, decals))

        red = (225, 40, 35) if self.lights_on else (150, 22, 25)
        lamp = (255, 250, 225) if self.lights_on else (195, 200, 205)
        ends: dict[int, list[Decal]] = {}
        for index, ((z0, y0), (z1, y1)) in enumerate(zip(outline, outline[1:], strict=False)):
            quad = np.array([(-w, y0, z0), (w, y0, z0), (w, y1, z1), (-w, y1, z1)])
            if index == 1:
                ends[1] = [
                    (_inset(quad, 0.02, 0.2, 0.4, 0.9), red), (_inset(quad, 0.8, 0.98, 0.4, 0.9), red),
                    (_inset(quad, 0.36, 0.64, 0.3, 0.6), _PLATE), (_inset(quad, 0.01, 0.99, 0.0, 0.18), _DARK),
                ]  # fmt: skip
            elif index == 5:
                ends[5] = [
                    (_inset(quad, 0.26, 0.74, 0.05, 0.7), _DARK), (_inset(quad, 0.02, 0.22, 0.25, 0.85), lamp),
                    (_inset(quad, 0.78, 0.98, 0.25, 0.85), lamp), (_inset(quad, 0.38, 0.62, 0.05, 0.35), _PLATE),
                ]  # fmt: skip
            faces.append((quad, paint * (0.55 if index in (0, 6) else 1.0), ends.get(index, [])))
        return faces + self._cabin(rear, length, sky, dim)

    def _cabin(
        self, rear: float, length: float, sky: np.ndarray, dim: float
    ) -> list[tuple[np.ndarray, np.ndarray, list[Decal]]]:
        w, top = self.width / 2 - 0.05, self.width / 2 - 0.24
        b0, b1, t0, t1 = (rear + share * length for share in self.cabin)
        low, high = self.waist, self.height
        sides = ((0.06, 0.47), (0.52, 0.93)) if self.shape != "van" else ((0.55, 0.93),)
        glass = (_GLASS * self.tint + sky * 0.12) * dim
        faces = []
        for corners, panes, shine in (
            ([(-w, low, b1), (-w, low, b0), (-top, high, t0), (-top, high, t1)], [(1 - b, 1 - a) for a, b in sides], 0),
            ([(w, low, b0), (w, low, b1), (top, high, t1), (top, high, t0)], sides, 0),
            ([(-w, low, b0), (w, low, b0), (top, high, t0), (-top, high, t0)], [(0.06, 0.94)], 0.05),
            ([(w, low, b1), (-w, low, b1), (-top, high, t1), (top, high, t1)], [(0.06, 0.94)], 0.17),
            ([(-top, high, t0), (top, high, t0), (top, high, t1), (-top, high, t1)], [], 0),
        ):
            quad = np.array(corners)
            faces.append((quad, self.colour, [(_inset(quad, a, b, 0.08, 0.85), glass + sky * shine) for a, b in panes]))
        return faces


def _upright(x: float, half: float, low: float, high: float, z: float) -> np.ndarray:
    """Rectangle across the car; seen from behind where ``half`` is positive, else from ahead."""
    return np.array([(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)])


def _inset(quad: np.ndarray, a: float, b: float, low: float, high: float) -> np.ndarray:
    """Part of a quad (bottom start, bottom end, top end, top start) between shares of its two directions."""
    s, t = np.array([a, b, b, a])[:, None], np.array([low, low, high, high])[:, None]
    return (1 - t) * ((1 - s) * quad[0] + s * quad[1]) + t * ((1 - s) * quad[3] + s * quad[2])
