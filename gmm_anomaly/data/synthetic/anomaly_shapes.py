"""Silhouettes of anomalies, drawn in greys that a pattern then colours.

Each shape draws into a unit box: x from -aspect/2 to aspect/2, y from 0 (ground) to 1 (top)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import Canvas

At = Callable[[float, float], tuple[float, float]]


def _grey(value: float) -> tuple[float, float, float]:
    return (255.0 * value,) * 3


class Pen:
    """Draws on a canvas in shape coordinates; ``size`` is the height of the shape in pixels."""

    def __init__(self, canvas: Canvas, u: float, v: float, size: float, mirror: int) -> None:
        self.canvas, self.u, self.v, self.size, self.mirror = canvas, u, v, size, mirror

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.u + self.mirror * x * self.size, self.v - y * self.size

    def disc(self, x: float, y: float, rx: float, ry: float, grey: float, turn: float = 0.0) -> None:
        self.canvas.ellipse(self.at(x, y), (rx * self.size, ry * self.size), _grey(grey), -turn * self.mirror)

    def bar(self, x0: float, y0: float, x1: float, y1: float, w0: float, w1: float, grey: float) -> None:
        self.canvas.limb(self.at(x0, y0), self.at(x1, y1), w0 * self.size, w1 * self.size, _grey(grey))

    def shape(self, points: list[tuple[float, float]] | np.ndarray, grey: float) -> None:
        self.canvas.polygon(np.array([self.at(float(x), float(y)) for x, y in points]), _grey(grey))


def _quadruped(pen: Pen, rng: np.random.Generator) -> None:
    legs = rng.uniform(0.28, 0.5)
    thick = rng.uniform(0.13, 0.25)
    length = rng.uniform(0.34, 0.5)
    body = legs + thick
    leg_width = rng.uniform(0.055, 0.12)
    for base, grey in ((-0.7, 0.55), (0.7, 0.55), (-0.85, 0.85), (0.88, 0.85)):
        swing = rng.uniform(-0.08, 0.08)
        hip = base * length
        pen.bar(hip, body, hip + swing * 0.4, legs * 0.5, leg_width * 1.5, leg_width, grey)
        pen.bar(hip + swing * 0.4, legs * 0.5, hip + swing, 0.0, leg_width, leg_width * 0.8, grey)
    pen.disc(0.0, body, length, thick, 0.9)
    pen.disc(0.6 * length, body + 0.02, 0.5 * length, thick * 1.08, 0.92)
    pen.disc(-0.6 * length, body, 0.48 * length, thick * 1.02, 0.88)
    neck_end = (length * rng.uniform(1.05, 1.35), min(0.9, body + rng.uniform(0.12, 0.38)))
    pen.bar(0.75 * length, body + 0.05, *neck_end, thick * 1.3, thick * 0.7, 0.9)
    head = rng.uniform(0.09, 0.14)
    pen.disc(neck_end[0] + head * 0.5, neck_end[1], head, head * 0.62, 1.0, -rng.uniform(0.0, 0.7))
    kind = rng.random()
    if kind < 0.3:  # antlers
        for tilt in (-0.06, 0.04):
            pen.bar(neck_end[0], neck_end[1] + 0.04, neck_end[0] + tilt, 1.0, 0.03, 0.018, 0.75)
            pen.bar(neck_end[0] + tilt * 0.6, 0.94, neck_end[0] + tilt + 0.09, 0.99, 0.02, 0.014, 0.75)
    elif kind < 0.5:  # trunk
        pen.disc(neck_end[0] - 0.06, neck_end[1], head * 0.9, head * 1.2, 0.7)
        pen.bar(neck_end[0] + head, neck_end[1], neck_end[0] + head * 1.5, 0.12, 0.07, 0.04, 0.9)
    else:
        for offset in (-0.02, 0.05):
            pen.disc(
                neck_end[0] + offset - 0.03,
                neck_end[1] + head * 0.75,
                0.03,
                rng.uniform(0.05, 0.09),
                0.7,
                0.4,
            )
    droop = rng.uniform(-0.25, 0.15)
    pen.bar(-length * 0.95, body + 0.05, -length - 0.14, body + droop, 0.05, 0.03, 0.8)


def _bird(pen: Pen, rng: np.random.Generator) -> None:
    for x in (-0.05, 0.07):
        pen.bar(x, 0.4, x + 0.03, 0.0, 0.035, 0.03, 0.6)
    pen.disc(0.0, 0.5, 0.3, 0.2, 0.85, 0.25)
    pen.disc(-0.08, 0.52, 0.2, 0.12, 0.65, 0.35)
    pen.bar(0.2, 0.56, 0.3, 0.88, 0.12, 0.07, 0.9)
    pen.disc(0.32, 0.9, 0.075, 0.07, 1.0)
    pen.shape([(0.37, 0.93), (0.37, 0.87), (0.5, 0.88)], 0.5)


def _crate(pen: Pen, rng: np.random.Generator) -> None:
    w, skew, top = rng.uniform(0.35, 0.6), rng.uniform(0.12, 0.4), rng.uniform(0.74, 0.9)
    lift = 1.0 - top
    pen.shape([(-w, 0), (w - skew, 0), (w - skew, top), (-w, top)], 0.9)
    pen.shape([(w - skew, 0), (w, lift * 0.8), (w, 1.0), (w - skew, top)], 0.55)
    pen.shape([(-w, top), (w - skew, top), (w, 1.0), (-w + skew, 1.0)], 1.0)
    if rng.random() < 0.6:
        for x in (-w + 0.03, w - skew - 0.03):
            pen.bar(x, 0, x, top, 0.06, 0.06, 0.65)
        pen.bar(-w, 0.04, w - skew, top - 0.04, 0.06, 0.06, 0.7)


def _barrel(pen: Pen, rng: np.random.Generator) -> None:
    w = rng.uniform(0.3, 0.42)
    for index in range(9):  # vertical strips, lit from one side
        a, b = np.cos(np.pi * (1 - index / 9)), np.cos(np.pi * (1 - (index + 1) / 9))
        grey = 0.45 + 0.55 * np.sin(np.pi * (index + 0.7) / 9)
        pen.shape([(w * a, 0.05), (w * b, 0.05), (w * b, 0.92), (w * a, 0.92)], grey)
    pen.disc(0, 0.06, w, 0.06, 0.6)
    pen.disc(0, 0.92, w, 0.08, 1.0)
    pen.disc(0, 0.92, w * 0.85, 0.06, 0.55)


def _ball(pen: Pen, rng: np.random.Generator) -> None:
    for step in range(8):
        share = 1.0 - step / 8
        pen.disc(-0.18 * (1 - share), 0.5 + 0.18 * (1 - share), 0.5 * share, 0.5 * share, 0.5 + 0.07 * step)


def _sofa(pen: Pen, rng: np.random.Generator) -> None:
    w = rng.uniform(0.8, 1.15)
    pen.shape([(-w, 0.35), (w, 0.35), (w * 0.97, 1.0), (-w * 0.97, 1.0)], 0.75)
    seats = int(rng.integers(2, 4))
    for index in range(seats):
        a = -w * 0.85 + index * 1.7 * w / seats
        b = a + 1.7 * w / seats - 0.03
        pen.shape([(a, 0.52), (b, 0.52), (b, 0.93), (a, 0.93)], 0.92)
        pen.shape([(a, 0.36), (b, 0.36), (b, 0.54), (a, 0.54)], 1.0)
    pen.shape([(-w, 0.08), (w, 0.08), (w, 0.38), (-w, 0.38)], 0.7)
    for sign in (-1, 1):
        pen.shape(
            [(sign * w * 0.84, 0.07), (sign * w, 0.07), (sign * w, 0.66), (sign * w * 0.84, 0.66)], 0.85
        )
        pen.disc(sign * w * 0.92, 0.66, 0.12, 0.08, 0.95)
        pen.bar(sign * w * 0.85, 0.1, sign * w * 0.85, 0.0, 0.06, 0.05, 0.4)


def _chair(pen: Pen, rng: np.random.Generator) -> None:
    for x, foot in ((-0.22, -0.28), (0.22, 0.28), (-0.3, -0.38), (0.12, 0.14)):
        pen.bar(x, 0.45, foot, 0.0, 0.07, 0.05, 0.6)
    pen.shape([(-0.34, 0.42), (0.18, 0.42), (0.32, 0.52), (-0.2, 0.52)], 0.95)
    pen.shape([(-0.2, 0.5), (0.32, 0.5), (0.34, 1.0), (-0.22, 1.0)], 0.75)


def _tyres(pen: Pen, rng: np.random.Generator) -> None:
    count = int(rng.integers(2, 5))
    for index in range(count):
        y, sway = (index + 0.5) / count, rng.uniform(-0.05, 0.05)
        pen.disc(sway, y, 0.52, 0.52 / count, 0.6 + 0.15 * (index % 2))
        pen.disc(sway, y + 0.14 / count, 0.5, 0.34 / count, 0.85)
    pen.disc(sway, y + 0.17 / count, 0.26, 0.16 / count, 0.25)


def _rubble(pen: Pen, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(14, 26))):
        x = rng.normal(0, 0.42)
        y = rng.uniform(0, 1) * max(0.1, 0.85 - 0.75 * abs(x))
        corners = int(rng.integers(4, 7))
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radius = rng.uniform(0.08, 0.28) * rng.uniform(0.7, 1.0, corners)
        points = np.stack(
            [x + radius * np.cos(angle), np.maximum(y + radius * 0.8 * np.sin(angle), 0)], axis=1
        )
        pen.shape(np.clip(points, (-1.2, 0), (1.2, 1)), rng.uniform(0.45, 1.0))


def _boat(pen: Pen, rng: np.random.Generator) -> None:
    w = rng.uniform(0.9, 1.2)
    pen.shape([(-w * 0.75, 0.0), (w * 0.6, 0.0), (w, 0.5), (-w * 0.95, 0.42)], 0.85)
    pen.shape([(-w * 0.93, 0.36), (w * 0.94, 0.44), (w, 0.5), (-w * 0.95, 0.42)], 0.5)
    if rng.random() < 0.5:
        pen.shape([(-w * 0.5, 0.42), (w * 0.25, 0.45), (w * 0.1, 0.85), (-w * 0.45, 0.85)], 1.0)
        pen.shape([(-w * 0.38, 0.55), (w * 0.08, 0.57), (w * 0.02, 0.75), (-w * 0.38, 0.75)], 0.3)
    else:
        pen.bar(0.0, 0.4, 0.0, 1.0, 0.05, 0.03, 0.55)
        pen.shape([(0.05, 0.48), (w * 0.6, 0.5), (0.05, 0.97)], 1.0)


def _blob(pen: Pen, rng: np.random.Generator) -> None:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    for scale, grey in ((1.0, 0.6), (0.85, 0.8), (0.6, 0.95)):
        if scale == 1.0:
            waves = sum(
                rng.uniform(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7)
            )
            radius = 0.5 * (0.8 + waves)
        x, y = 1.15 * radius * scale * np.cos(angle), 0.5 + radius * scale * np.sin(angle)
        pen.shape(np.stack([x, np.clip(y, 0, 1)], axis=1), grey)


def _bathtub(pen: Pen, rng: np.random.Generator) -> None:
    for x in (-0.6, 0.55):
        pen.bar(x, 0.25, x * 1.1, 0.0, 0.1, 0.08, 0.5)
    pen.shape([(-0.95, 0.95), (-0.8, 0.3), (-0.6, 0.12), (0.6, 0.12), (0.8, 0.3), (0.9, 0.8)], 0.85)
    pen.disc(-0.02, 0.86, 0.95, 0.12, 1.0, 0.06)
    pen.disc(-0.02, 0.85, 0.82, 0.075, 0.4, 0.06)


# name: (draw, aspect = box width / height, usual height in metres, patterns it may wear; () means any)
SHAPES: dict[
    str, tuple[Callable[[Pen, np.random.Generator], None], float, tuple[float, float], tuple[str, ...]]
] = {
    "quadruped": (_quadruped, 1.9, (0.6, 2.0), ("fur", "leopard", "zebra", "knit", "plain")),
    "bird": (_bird, 1.1, (0.5, 1.4), ("fur", "leopard", "plain", "stripes")),
    "crate": (_crate, 1.25, (0.4, 1.4), ("wood", "checker", "stripes", "plain", "rust")),
    "barrel": (_barrel, 0.9, (0.7, 1.2), ("stripes", "rust", "checker", "wood")),
    "ball": (_ball, 1.0, (0.3, 1.3), ("checker", "stripes", "leopard", "zebra", "knit")),
    "sofa": (_sofa, 2.4, (0.7, 1.0), ("knit", "checker", "stripes", "plain", "leopard")),
    "chair": (_chair, 0.85, (0.7, 1.1), ("wood", "plain", "stripes")),
    "tyres": (_tyres, 1.1, (0.4, 1.0), ("plain", "stripes", "checker")),
    "rubble": (_rubble, 2.4, (0.25, 0.8), ("rust", "wood", "plain", "fur")),
    "boat": (_boat, 2.4, (0.9, 1.8), ("wood", "plain", "stripes", "rust")),
    "blob": (_blob, 1.3, (0.4, 1.5), ()),
    "bathtub": (_bathtub, 2.0, (0.5, 0.8), ("plain", "rust", "checker")),
}
