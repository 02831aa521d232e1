"""Trees and bushes: a trunk and a crown of overlapping tufts with frayed outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Frame
from .labels import VEGETATION


@dataclass(frozen=True)
class Plant:
    """Sizes in metres. tufts: (n, 4) of x, y (0..1 of the crown), radius (share of its width), brightness."""

    x: float
    z: float
    trunk: float
    girth: float
    crown_width: float
    crown_height: float
    tufts: np.ndarray
    colour: np.ndarray
    bark: np.ndarray
    offset: tuple[int, int]

    @property
    def reach(self) -> tuple[float, float]:
        """Half width and height, metres."""
        return self.crown_width / 2, self.trunk + self.crown_height

    @property
    def near(self) -> float:
        return self.z

    def cast(self, frame: Frame) -> None:
        if self.trunk:
            frame.cast(self.x, self.z, self.girth, 0.0, self.trunk, 170)
        low = self.trunk + 0.3 * self.crown_height
        frame.cast(self.x, self.z, 0.42 * self.crown_width, low, self.trunk + 0.8 * self.crown_height, 190)

    def paint(self, frame: Frame, sunlit: float) -> None:
        camera, light = frame.camera, frame.light
        u, v = camera.ground(self.x, self.z)
        scale = camera.scale(self.z)
        crown_top = v - scale * (self.trunk + self.crown_height)
        half = scale * self.crown_width / 2
        if u + half < 0 or u - half > camera.width:
            return
        if self.trunk:
            girth = max(self.girth * scale, 1.2)
            trunk_top = v - scale * (self.trunk + 0.3 * self.crown_height)
            canvas = Canvas(frame, (u - girth, max(trunk_top, 0.0), u + girth, v))
            canvas.limb((u, v), (u, trunk_top), girth * 1.25, girth * 0.7, self.bark)
            canvas.grain(0.35, max(1.0, scale / 40), self.offset)
            canvas.paste(VEGETATION, self.z, sunlit)
        canvas = Canvas(frame, (u - half, crown_top, u + half, v - scale * self.trunk), supersample=1)
        canvas.tint(self.colour * 0.75)
        side = float(np.sign(light.sun[0]))
        for x, y, radius, bright in self.tufts if half > 12 else self.tufts[::2]:
            sun = 0.62 + 0.4 * y + 0.22 * side * (2 * x - 1) * (1.0 - light.ambient) * 2
            centre = (u - half + 2 * half * x, v - scale * (self.trunk + self.crown_height * y))
            canvas.ellipse(centre, (radius * 2 * half, radius * 1.7 * half), self.colour * (bright * sun))
        zoom = min(max(scale * 0.035, 0.45), 4.0)
        canvas.leafy(zoom, self.offset, 0.55, 0.32)
        canvas.paste(VEGETATION, self.z, sunlit)


def sample_plant(rng: np.random.Generator, x: float, z: float, bush: bool) -> Plant:
    count = int(rng.integers(10, 18)) if not bush else int(rng.integers(5, 9))
    conifer = not bush and rng.random() < 0.2
    y = np.sort(rng.uniform(0.12, 0.9, count))
    if conifer:
        y = np.linspace(0.1, 0.92, 2 * count)
        spread = 0.26 * (1.0 - y)
        radius = 0.1 + 0.22 * (1.0 - y)
    else:
        spread = 0.34 * np.sqrt(np.clip(1.0 - (2 * y - 0.95) ** 2, 0.03, 1.0))
        radius = rng.uniform(0.14, 0.25, count)
    x_tufts = 0.5 + spread * rng.uniform(-1, 1, y.size)
    if not conifer:  # a core that keeps the tufts together
        x_tufts[0], y[0], radius[0] = 0.5, 0.45, 0.3
    tufts = np.stack([x_tufts, y, radius, rng.uniform(0.8, 1.2, y.size)], axis=1)
    season = rng.random()
    if season < 0.85:
        colour = np.array([rng.uniform(55, 120), rng.uniform(90, 145), rng.uniform(30, 75)])
    else:
        colour = np.array([rng.uniform(130, 185), rng.uniform(85, 125), rng.uniform(35, 60)])
    if bush:
        width = rng.uniform(0.9, 2.4)
        trunk, height = 0.0, width * rng.uniform(0.6, 1.0)
    else:
        trunk, width = rng.uniform(1.6, 3.2), rng.uniform(2.6, 5.2)
        height = width * rng.uniform(0.8, 1.3)
        if conifer:
            trunk, height, width = rng.uniform(0.5, 1.5), rng.uniform(5.0, 9.0), rng.uniform(2.2, 3.6)
    return Plant(
        x=x,
        z=z,
        trunk=float(trunk),
        girth=float(rng.uniform(0.18, 0.42)),
        crown_width=float(width),
        crown_height=float(height),
        tufts=tufts,
        colour=colour,
        bark=np.array([1.0, 0.85, 0.7]) * rng.uniform(60, 110),
        offset=(int(rng.integers(0, 4096)), int(rng.integers(0, 4096))),
    )
