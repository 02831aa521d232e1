"""Building fronts, end walls and roofs along the two wall lines of a street."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import BUILDING, Canvas, Frame, noise

_NEAR = 1.0  # metres: what is closer is behind the picture's edge
_TINTS = ((1, 1, 1), (1.08, 0.98, 0.82), (1.15, 0.82, 0.7), (1.1, 1.02, 0.75), (0.9, 0.98, 1.08))
_ROOFS = ((150, 85, 65), (95, 90, 92), (115, 75, 60), (70, 75, 85))


class Plot:
    """A building between the depths z0 and z1. side: -1 left, 1 right. wall: x of the front. All in
    metres."""

    def __init__(
        self, rng: np.random.Generator, side: int, wall: float, z0: float, length: float, town: bool
    ) -> None:
        self.side, self.z0, self.z1 = side, z0, z0 + length
        self.offset = int(rng.integers(4096))
        self.wall, self.depth = wall + side * rng.uniform(0, 0.6), rng.uniform(7, 14)
        self.bay, self.floor = rng.uniform(1.6, 4.2), rng.uniform(2.7, 3.6)
        self.height = self.floor * rng.integers(*((3, 8) if town else (1, 4)))
        self.roof = rng.uniform(2.0, 4.5) if rng.random() < (0.25 if town else 0.85) else 0.0
        self.roof_colour = np.multiply(_ROOFS[rng.integers(len(_ROOFS))], rng.uniform(0.8, 1.2))
        tint, grey = _TINTS[rng.integers(len(_TINTS))], rng.uniform(75, 215)
        self.colour = np.multiply(tint, grey) + rng.uniform(-6, 6, 3)
        self.trim = np.clip(self.colour * rng.uniform(0.6, 1.35), 30, 245)
        self.glass = rng.uniform((35, 45, 55), (80, 90, 105))
        self.panes = np.float32(rng.uniform(0.55, 1.9, 64))
        self.window = (min(rng.uniform(0.8, 1.8), 0.75 * self.bay), rng.uniform(1.1, 1.9))

    def cast(self, frame: Frame) -> None:
        back = self.wall + self.side * self.depth
        corners = [(x, z) for x in (self.wall, back) for z in (self.z0, self.z1)]
        frame.cast(np.array(corners), 0.0, self.height + 0.5 * self.roof)

    def paint(self, frame: Frame) -> None:
        """End wall towards the camera, then the roof, then the street front."""
        camera = frame.camera
        if self.z0 > _NEAR + 0.5:
            shift = float(camera.shift(self.z0))
            ends = np.array([self.wall, self.wall + self.side * self.depth]) + shift
            columns = _columns(frame, camera.u0 + camera.focal * ends / self.z0)
            along = np.abs((columns - camera.u0) * self.z0 / camera.focal - shift - self.wall)
            depth = np.full(columns.size, self.z0)
            self._paint_face(frame, columns, along, depth, depth / camera.focal, (0, 0, -1))
        if self.roof:
            self._paint_roof(frame)
        inverse = np.linspace(1.0 / max(self.z0, _NEAR), 1.0 / self.z1, 24)
        u = camera.u0 + camera.focal * (self.wall + camera.shift(1.0 / inverse)) * inverse
        # Inside a bend the wall turns its back beyond the tangent; the nearer part hides the rest.
        away = np.flatnonzero(np.diff(u * self.side) > 0)
        u = u[: away[0] + 1] if away.size else u
        columns, order = _columns(frame, u), np.argsort(u)
        depth = 1.0 / np.interp(columns, u[order], inverse[order])
        resolution = depth * depth / (camera.focal * max(abs(self.wall), 0.5))
        self._paint_face(frame, columns, depth - self.z0, depth, resolution, (-self.side, 0, 0))

    def _paint_roof(self, frame: Frame) -> None:
        z0, eaves, ridge = max(self.z0, _NEAR + 1.0), self.height, self.height + self.roof
        middle, back = (self.wall + self.side * share * self.depth for share in (0.5, 1.0))
        depths = np.linspace(z0, self.z1, 5)
        gable = [(self.wall, eaves, z0), (middle, ridge, z0), (back, eaves, z0)]
        slope = [(self.wall - self.side * 0.4, eaves - 0.1, z) for z in depths]
        slope += [(middle, ridge, z) for z in depths[::-1]]
        for points, colour, normal in (
            (gable, self.colour, (0.0, 0.0, -1.0)),
            (slope, self.roof_colour, (-self.side * 0.6, 0.8, 0.0)),
        ):
            pixels = frame.camera.project(points)
            # The slope is unseen from below the eaves: its outline then runs the other way round.
            if points is gable or cv2.contourArea(np.float32(pixels), True) * self.side >= 1.0:
                canvas = Canvas(frame, (*pixels.min(axis=0), *pixels.max(axis=0)))
                canvas.polygon(pixels, colour)
                canvas.grain(0.12, 1.0, "grain")
                canvas.paste(BUILDING, (z0 + self.z1) / 2, frame.light.shade(normal))

    def _paint_face(
        self, frame: Frame, columns: np.ndarray, along: np.ndarray, depth: np.ndarray, resolution: np.ndarray,
        normal: tuple[int, int, int],
    ) -> None:  # fmt: skip
        """columns: (n,) picture columns; along: metres along the face; depth: metres; resolution: metres
        along the face per pixel."""
        camera, light = frame.camera, frame.light
        along, depth, resolution = (np.float32(a)[None] for a in (along, depth, resolution))
        pixel = depth / camera.focal
        if not columns.size:
            return
        first = max(0, int(camera.v0 - ((self.height - camera.eye) / pixel).max()))
        last = min(camera.height, int(camera.v0 + (camera.eye / pixel).max()) + 2)
        y = camera.eye - (np.arange(first, last, dtype=np.float32)[:, None] - camera.v0) * pixel
        cover = np.clip((self.height - y) / pixel + 0.5, 0.0, 1.0) * (y > -0.5 * pixel)
        clear = light.clear(depth)
        gain, haze = light.shade(normal) * clear, 1.0 - clear
        tone = 1.0 + 0.12 * noise("blotch", along * 12.0 + self.offset, y * 12.0)
        tone *= 1.0 - np.float32(0.2) * (y < 0.5) + np.float32(0.2) * (y > self.height - 0.35)
        layers = self._windows(along, y, pixel, resolution, light.horizon)
        place = np.s_[first:last, columns[0] : columns[-1] + 1]
        for channel in range(3):
            colour = tone * float(self.colour[channel])
            for rgb, share, bright in layers:
                colour += share * (bright * float(rgb[channel]) - colour)
            colour *= gain
            colour += haze * light.haze[channel]
            plane = frame.image[channel][place]
            plane += cover * (colour - plane)
        frame.label[place][cover > 0.5] = BUILDING

    def _windows(
        self, along: np.ndarray, y: np.ndarray, pixel: np.ndarray, resolution: np.ndarray, sky: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | float]]:
        """Casings and panes: colour, share of a pixel and brightness of each. along, pixel, resolution: (1,
        n), y: (rows, n)."""
        bay, storey = along / self.bay, y / self.floor
        bay_index, storey_index = np.floor(bay), np.floor(storey)
        across = np.abs(bay - bay_index - 0.5) * self.bay
        up = np.abs(storey - storey_index - 0.5) * self.floor

        def opening(margin: float) -> np.ndarray:
            """Share of each pixel that lies inside the windows widened by ``margin`` metres."""
            width, height = (size / 2 + margin for size in self.window)
            share = np.clip((height - up) / pixel + 0.5, 0.0, 1.0)
            return share * np.clip((width - across) / resolution + 0.5, 0.0, 1.0)

        panes = opening(0.0) * (1.0 - np.float32(0.6) * ((across < 0.035) & (resolution < 0.06)))
        bright = self.panes[(bay_index * 7 + storey_index * 13).astype(np.int32) & 63]
        return [(self.trim, opening(0.1), 1.0), (0.75 * self.glass + 0.25 * sky, panes, bright)]


def _columns(frame: Frame, u: np.ndarray) -> np.ndarray:
    """The picture's columns between the outermost of these column coordinates."""
    return np.arange(max(0, int(np.ceil(u.min()))), min(frame.camera.width, int(np.floor(u.max())) + 1))
