"""Poles and what they carry: lamp posts, plain posts and traffic signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Frame
from .labels import POLE, TRAFFIC_SIGN

_RED, _BLUE, _WHITE = (190, 28, 38), (28, 75, 165), (235, 235, 235)
_YELLOW, _GREEN, _BLACK, _GREY = (240, 190, 30), (20, 115, 70), (25, 25, 25), (135, 138, 142)

SIGN_KINDS = (
    "limit",
    "no_entry",
    "warning",
    "yield",
    "stop",
    "mandatory",
    "priority",
    "parking",
    "direction",
    "back",
)


@dataclass(frozen=True)
class Post:
    """height, girth: metres. arm: signed reach of a lamp over the road, 0 for none. signs: (kind, size,
    height of the centre) from the top down."""

    x: float
    z: float
    height: float
    girth: float
    arm: float
    colour: np.ndarray
    signs: tuple[tuple[str, float, float], ...]
    hue: int

    @property
    def reach(self) -> tuple[float, float]:
        widest = max((size / 2 for _, size, _ in self.signs), default=self.girth / 2)
        return widest, self.height

    @property
    def near(self) -> float:
        return self.z

    def cast(self, frame: Frame) -> None:
        frame.cast(self.x, self.z, self.girth * 0.7, 0.0, self.height, 190)
        for _, size, centre in self.signs:
            frame.cast(self.x, self.z, size * 0.4, centre - size * 0.3, centre + size * 0.3, 190)

    def paint(self, frame: Frame, sunlit: float) -> None:
        u, v = frame.camera.ground(self.x, self.z)
        scale = frame.camera.scale(self.z)
        reach = (abs(self.arm) + 1.0) * scale
        if u + reach < 0 or u - reach > frame.camera.width:
            return
        girth = max(self.girth * scale, 1.15)
        top = v - self.height * scale
        canvas = Canvas(frame, (u - girth, top, u + girth, v))
        canvas.limb((u, v), (u, top), girth, girth * 0.8, self.colour)
        if girth > 2.5:
            canvas.limb(
                (u + girth * 0.25, v), (u + girth * 0.2, top), girth * 0.35, girth * 0.3, self.colour * 0.75
            )
            canvas.limb((u, v), (u, v - 0.5 * scale), girth * 1.5, girth * 1.4, self.colour * 0.85)
        canvas.paste(POLE, self.z, sunlit)
        if self.arm:
            tip = u + self.arm * scale
            canvas = Canvas(frame, (min(u, tip) - 2, top - 0.6 * scale, max(u, tip) + 2, top + 2))
            canvas.limb((u, top), (tip, top - 0.25 * scale), girth * 0.8, girth * 0.6, self.colour)
            inner = u + 0.62 * self.arm * scale
            canvas.limb(
                (inner, top - 0.19 * scale),
                (tip, top - 0.25 * scale),
                0.2 * scale + 0.5,
                0.16 * scale + 0.5,
                np.array([200.0, 200.0, 190.0]),
            )
            canvas.paste(POLE, self.z, sunlit)
        for kind, size, centre in self.signs:
            half = max(size * scale / 2, 1.0)
            middle = v - centre * scale
            canvas = Canvas(frame, (u - 1.5 * half, middle - half, u + 1.5 * half, middle + half))
            _paint_sign(canvas, kind, u, middle, half, self.hue)
            canvas.paste(TRAFFIC_SIGN, self.z - 0.1, 0.35 + 0.65 * sunlit)


def _ring(u: float, v: float, radius: float, corners: int, turn: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turn
    return np.stack([u + radius * np.cos(angle), v + radius * np.sin(angle)], axis=1)


def _bar(canvas: Canvas, u: float, v: float, half_width: float, half_height: float, colour) -> None:
    corners = [
        (u - half_width, v - half_height),
        (u + half_width, v - half_height),
        (u + half_width, v + half_height),
        (u - half_width, v + half_height),
    ]
    canvas.polygon(np.array(corners), colour)


def _paint_sign(canvas: Canvas, kind: str, u: float, v: float, r: float, hue: int) -> None:
    up, down = -np.pi / 2, np.pi / 2
    if kind == "limit":
        canvas.ellipse((u, v), (r, r), _RED)
        canvas.ellipse((u, v), (0.76 * r, 0.76 * r), _WHITE)
        for x in (-0.28, 0.28):
            _bar(canvas, u + x * r, v, 0.19 * r, 0.38 * r, _BLACK)
            _bar(canvas, u + x * r, v, 0.06 * r, 0.22 * r, _WHITE)
    elif kind == "no_entry":
        canvas.ellipse((u, v), (r, r), _RED)
        _bar(canvas, u, v, 0.7 * r, 0.17 * r, _WHITE)
    elif kind == "warning":
        canvas.polygon(_ring(u, v + 0.2 * r, 1.15 * r, 3, up), _RED)
        canvas.polygon(_ring(u, v + 0.2 * r, 0.72 * r, 3, up), _YELLOW if hue % 2 else _WHITE)
        _bar(canvas, u, v + 0.08 * r, 0.08 * r, 0.28 * r, _BLACK)
    elif kind == "yield":
        canvas.polygon(_ring(u, v - 0.2 * r, 1.15 * r, 3, down), _RED)
        canvas.polygon(_ring(u, v - 0.2 * r, 0.68 * r, 3, down), _WHITE)
    elif kind == "stop":
        canvas.polygon(_ring(u, v, 1.05 * r, 8, np.pi / 8), _WHITE)
        canvas.polygon(_ring(u, v, 0.95 * r, 8, np.pi / 8), _RED)
        _bar(canvas, u, v, 0.62 * r, 0.2 * r, _WHITE)
    elif kind == "mandatory":
        canvas.ellipse((u, v), (r, r), _BLUE)
        canvas.limb((u, v + 0.6 * r), (u, v - 0.1 * r), 0.24 * r, 0.24 * r, _WHITE)
        canvas.polygon(_ring(u, v - 0.25 * r, 0.42 * r, 3, up), _WHITE)
    elif kind == "priority":
        canvas.polygon(_ring(u, v, 1.1 * r, 4, 0.0), _WHITE)
        canvas.polygon(_ring(u, v, 0.75 * r, 4, 0.0), _YELLOW)
    elif kind == "parking":
        _bar(canvas, u, v, 0.9 * r, r, _WHITE)
        _bar(canvas, u, v, 0.8 * r, 0.9 * r, _BLUE)
        canvas.ellipse((u + 0.1 * r, v - 0.25 * r), (0.36 * r, 0.34 * r), _WHITE)
        canvas.ellipse((u + 0.08 * r, v - 0.25 * r), (0.17 * r, 0.16 * r), _BLUE)
        _bar(canvas, u - 0.22 * r, v, 0.11 * r, 0.6 * r, _WHITE)
    elif kind == "direction":
        colour = (_BLUE, _GREEN, _YELLOW, _WHITE)[hue % 4]
        ink = _BLACK if hue % 4 > 1 else _WHITE
        _bar(canvas, u, v, 1.45 * r, 0.8 * r, ink)
        _bar(canvas, u, v, 1.37 * r, 0.72 * r, colour)
        _bar(canvas, u - 0.2 * r, v - 0.3 * r, 0.85 * r, 0.12 * r, ink)
        _bar(canvas, u - 0.35 * r, v + 0.25 * r, 0.7 * r, 0.12 * r, ink)
    elif kind == "back":
        canvas.ellipse((u, v), (r, r), _GREY)
        _bar(canvas, u, v, 0.12 * r, 0.95 * r, (110, 112, 115))
    else:
        raise ValueError(f"unknown sign kind {kind!r}; known: {', '.join(SIGN_KINDS)}")


def sample_lamp(rng: np.random.Generator, x: float, z: float, road_side: int) -> Post:
    """road_side: -1 or 1, the direction of the road as seen from the post."""
    armed = rng.random() < 0.75
    return Post(
        x=x,
        z=z,
        height=float(rng.uniform(4.5, 8.5)),
        girth=float(rng.uniform(0.13, 0.24)),
        arm=float(road_side * rng.uniform(0.9, 2.4)) if armed else 0.0,
        colour=np.full(3, rng.uniform(55, 165)) + rng.uniform(-6, 6, 3),
        signs=(),
        hue=0,
    )


def sample_sign(rng: np.random.Generator, x: float, z: float) -> Post:
    size, bottom = rng.uniform(0.6, 0.95), rng.uniform(1.9, 2.5)
    kinds = rng.choice(SIGN_KINDS, size=2, replace=False)
    signs = [(str(kinds[0]), float(size), float(bottom + size / 2))]
    if rng.random() < 0.3:
        signs.append((str(kinds[1]), float(size * 0.9), float(bottom + 1.55 * size)))
    return Post(
        x=x,
        z=z,
        height=float(signs[-1][2] + size * 0.3),
        girth=float(rng.uniform(0.07, 0.11)),
        arm=0.0,
        colour=np.full(3, rng.uniform(110, 185)),
        signs=tuple(signs),
        hue=int(rng.integers(0, 4)),
    )
