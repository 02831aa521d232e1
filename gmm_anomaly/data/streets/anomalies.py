"""Objects that no training street holds, set down on and beside the road of a finished street.

A shape is drawn in greys, which a pattern then colours; no known object wears one of these patterns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from .canvas import ANOMALY_LABEL, Camera, Canvas, Frame, Light, Thing
from .street import Street

# Where a pattern has its second colour, 0..1. a, b: place along and across, in repeats; coarse, fine: noise.
_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "fur": lambda a, b, coarse, fine: 0.45 + 0.55 * fine + 0.35 * coarse,
    "zebra": lambda a, b, coarse, fine: 0.5 + 3.0 * np.sin(2 * np.pi * (a + 0.45 * coarse)),
    "wood": lambda a, b, coarse, fine: (
        0.4 + 0.25 * np.sin(2 * np.pi * (5 * b + 1.6 * coarse)) + 0.15 * fine + 0.7 * (b % 1.0 < 0.08)
    ),
    "checker": lambda a, b, coarse, fine: (np.floor(2 * a) + np.floor(2 * b)) % 2,
    "stripes": lambda a, b, coarse, fine: 0.5 + 6.0 * np.sin(2 * np.pi * a),
    "knit": lambda a, b, coarse, fine: 0.5 + 0.5 * np.sin(6 * np.pi * a) * np.sin(6 * np.pi * b),
}

# The shapes draw into a box of height 1 that stands on the ground at x = 0.


def _quadruped(pen: Canvas, rng: np.random.Generator) -> None:
    legs, thick, length, leg = rng.uniform((0.28, 0.13, 0.34, 0.055), (0.5, 0.25, 0.5, 0.12))
    body = legs + thick
    for base, grey in ((-0.7, 140), (0.7, 140), (-0.85, 217), (0.88, 217)):
        swing, hip = rng.uniform(-0.08, 0.08), base * length
        knee = (hip + swing * 0.4, legs * 0.5)
        pen.limb((hip, body), knee, leg * 1.5, leg, grey)
        pen.limb(knee, (hip + swing, 0.0), leg, leg * 0.8, grey)
    pen.disc(0.0, body, length, thick, 230)
    pen.disc(0.6 * length, body + 0.02, 0.5 * length, thick * 1.08, 235)
    pen.disc(-0.6 * length, body, 0.48 * length, thick * 1.02, 224)
    x, y = length * rng.uniform(1.05, 1.35), min(0.9, body + rng.uniform(0.12, 0.38))  # end of the neck
    pen.limb((0.75 * length, body + 0.05), (x, y), thick * 1.3, thick * 0.7, 230)
    head = rng.uniform(0.09, 0.14)
    pen.disc(x + head * 0.5, y, head, head * 0.62, 255, -rng.uniform(0.0, 0.7))
    for offset in (-0.05, 0.02):
        pen.disc(x + offset, y + head * 0.75, 0.03, rng.uniform(0.05, 0.12), 178, 0.4)
    tail = (-length - 0.14, body + rng.uniform(-0.25, 0.15))
    pen.limb((-length * 0.95, body + 0.05), tail, 0.05, 0.03, 204)


def _crate(pen: Canvas, rng: np.random.Generator) -> None:
    w, skew, top = rng.uniform((0.35, 0.12, 0.74), (0.6, 0.4, 0.9))
    pen.box(-w, 0, w - skew, top, 230)
    pen.polygon([(w - skew, 0), (w, 0.8 * (1 - top)), (w, 1.0), (w - skew, top)], 140)
    pen.polygon([(-w, top), (w - skew, top), (w, 1.0), (-w + skew, 1.0)], 255)
    if rng.random() < 0.6:
        for x in (-w + 0.03, w - skew - 0.03):
            pen.limb((x, 0), (x, top), 0.06, 0.06, 166)
        pen.limb((-w, 0.04), (w - skew, top - 0.04), 0.06, 0.06, 178)


def _ball(pen: Canvas, rng: np.random.Generator) -> None:
    for inward in np.arange(8) / 8:
        radius = 0.5 - 0.5 * inward
        pen.disc(-0.18 * inward, 0.5 + 0.18 * inward, radius, radius, 128 + 140 * inward)


def _blob(pen: Canvas, rng: np.random.Generator) -> None:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = [rng.uniform(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7)]
    radius = 0.5 * (0.8 + np.sum(waves, axis=0))
    for scale, grey in ((1.0, 153), (0.85, 204), (0.6, 242)):
        x, y = 1.15 * radius * scale * np.cos(angle), 0.5 + radius * scale * np.sin(angle)
        pen.polygon(np.stack([x, np.clip(y, 0, 1)], axis=1), grey)


# draw, box width / height, usual height in metres, the patterns it may wear
_SHAPES: tuple[tuple[Callable[[Canvas, np.random.Generator], None], float, tuple[float, float], str], ...] = (
    (_quadruped, 1.9, (0.6, 2.0), "fur zebra knit"),
    (_crate, 1.25, (0.4, 1.4), "wood checker stripes"),
    (_ball, 1.0, (0.3, 1.3), "checker stripes zebra knit"),
    (_blob, 1.3, (0.4, 1.5), " ".join(_PATTERNS)),
)


class Look:
    """What an unknown object looks like: a shape, and the pattern and colours that it wears.

    Args:
        draw: of the shape, into a box of height 1. patterns: names of those that it may wear.
    """

    def __init__(
        self, rng: np.random.Generator, draw: Callable[[Canvas, np.random.Generator], None], patterns: str
    ) -> None:
        self.draw, self.pattern = draw, str(rng.choice(patterns.split()))
        self.period, self.turn = rng.uniform(0.16, 0.5), rng.uniform(0, np.pi)
        self.seed = int(rng.integers(2**31))
        # Natural (browns, greys) or painted, and another one that is darker.
        natural = rng.uniform((1.0, 0.7, 0.4), (1.0, 0.95, 0.85)) * rng.uniform(0.35, 0.95)
        painted = rng.uniform(0.15, 1.0, 3)
        first, second = (natural, natural) if rng.random() < 0.5 else (painted, painted[::-1])
        self.colours = np.float32([first, second * rng.uniform(0.2, 0.6)])

    def draw_on(self, canvas: Canvas, height: float) -> None:
        """canvas: in which the shape's box stands; height: of that box in pixels of the picture."""
        self.draw(canvas, np.random.default_rng(self.seed))
        rgba = canvas.rgba
        period = max(self.period * height, 2.0)
        y, x = np.ogrid[: rgba.shape[0], : rgba.shape[1]]
        cos, sin = np.cos(self.turn) / period, np.sin(self.turn) / period
        coarse, fine = canvas.noise("blotch", period / 12), canvas.noise("leaf", period / 15)
        mix = _PATTERNS[self.pattern](x * cos + y * sin, y * cos - x * sin, coarse, fine)
        pattern = self.colours[0] + np.clip(mix, 0, 1)[..., None] * (self.colours[1] - self.colours[0])
        # Darker towards the outline, as if it bulged.
        width = max(3, int(height * 0.12) | 1)
        pattern *= 0.65 + cv2.blur(rgba[..., 3], (width, width))[..., None] * np.float32(0.38 / 255)
        rgba[..., :3] = np.minimum(rgba[..., :3] * pattern, rgba[..., 3:])


def draw_unknown(rng: np.random.Generator, height: float) -> np.ndarray:
    """One of the unknown objects alone, ``height`` pixels high: (h, w, 4) uint8 RGBA, not premultiplied."""
    draw, aspect, _, patterns = _SHAPES[rng.integers(len(_SHAPES))]
    mirror, look = int(rng.choice([-1, 1])), Look(rng, draw, patterns)
    rows, columns = (math.ceil(length) + 8 for length in (height, height * aspect))
    frame = Frame(Camera(rng, rows, columns), Light(rng))
    box = (-aspect / 2, -0.01, aspect / 2, 1.02)
    canvas = Canvas(frame, box, (columns / 2, rows - 4), (mirror * height, -height))
    look.draw_on(canvas, height)
    alpha = np.maximum(canvas.rgba[..., 3:], 1)
    canvas.rgba[..., :3] = np.minimum(canvas.rgba[..., :3] * np.float32(255) / alpha, 255)
    return canvas.rgba


class Anomaly(Thing):
    """Heights in pixels are drawn first (log-uniform), so that small and large ones are equally likely; the
    depth follows from the height in metres."""

    def __init__(self, rng: np.random.Generator, camera: Camera, street: Street, main: bool) -> None:
        draw, aspect, (low, high), patterns = _SHAPES[rng.integers(len(_SHAPES))]
        height = np.exp(rng.uniform(np.log(low), np.log(high)))
        least, most = np.log((0.16, 0.4) if main else (0.06, 0.28))
        rows = camera.height * np.exp(rng.uniform(least, most)) / np.sqrt(max(aspect, 1.0))
        z = float(np.clip(camera.focal * height / rows, 5.0, 45.0))
        height = float(np.clip(rows * z / camera.focal, 0.6 * low, 1.4 * high))
        half = aspect * height / 2
        # Sideways: within the picture and between the walls, more often on the road.
        margin, shift = 0.04 * camera.width, float(camera.shift(z))
        left = max((margin - camera.u0) * z / camera.focal - shift, street.walls[0]) + half
        right = min((camera.width - margin - camera.u0) * z / camera.focal - shift, street.walls[1]) - half
        if rng.random() < 0.65:
            left, right = max(left, street.left), min(right, street.right)
        x = rng.uniform(left, right) if left < right else (left + right) / 2
        super().__init__(x, z, half, height)
        self.mirror = int(rng.choice([-1, 1]))
        self.look = Look(rng, draw, patterns)

    def cast(self, frame: Frame) -> None:
        for side in np.linspace(-0.6, 0.6, 3) * self.half:
            frame.cast(self.ring(0.27 * self.half) + (side, 0.0), 0.0, 0.8 * self.height)

    def paint(self, frame: Frame, sunlit: float) -> None:
        aspect = self.half / self.height
        canvas = frame.stand(self.x, self.z, self.height, (-aspect, -0.01, aspect, 1.02), self.mirror)
        self.look.draw_on(canvas, self.height * frame.camera.focal / self.z)
        canvas.paste(ANOMALY_LABEL, self.z, sunlit)


def sample_anomalies(
    rng: np.random.Generator, camera: Camera, street: Street, solids: Sequence[Thing]
) -> list[Anomaly]:
    """1 to 4 anomalies that stand on the street, inside the picture, mostly unhidden by the ``solids``."""
    placed: list[Anomaly] = []
    for index in range(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1])):
        tried = []
        for _ in range(30):
            candidate = Anomaly(rng, camera, street, main=index == 0)
            hidden = _hidden_share(camera, candidate, [*solids, *placed])
            hidden = max([hidden, *(_hidden_share(camera, other, [candidate]) for other in placed)])
            tried.append((hidden, candidate))
            if hidden < 0.1:
                break
        hidden, best = min(tried, key=lambda entry: entry[0])
        if index == 0 or hidden < 0.3:
            placed.append(best)
    return placed


def _box(camera: Camera, thing: Thing) -> np.ndarray:
    """Left, top, right, bottom of a thing's nearest face in the picture, in pixels."""
    z = max(thing.near, 1.0)
    corners = [(thing.x - thing.half, thing.height, z), (thing.x + thing.half, 0.0, z)]
    return camera.project(corners).ravel()


def _area(box: np.ndarray) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _hidden_share(camera: Camera, anomaly: Anomaly, solids: Sequence[Thing]) -> float:
    """Largest share of the anomaly's box that one nearer solid's box, or the picture's lower edge, covers; 1
    where it would stand inside a solid."""
    mine = _box(camera, anomaly)
    worst = max(0.0, (mine[3] - camera.height) / (mine[3] - mine[1]))
    for solid in solids:
        deep = abs(solid.z - solid.near) + 0.5
        if abs(solid.z - anomaly.z) < deep and abs(solid.x - anomaly.x) < solid.half + anomaly.half:
            return 1.0
        if solid.near <= anomaly.z:
            other = _box(camera, solid)
            common = np.concatenate([np.maximum(mine[:2], other[:2]), np.minimum(mine[2:], other[2:])])
            worst = max(worst, _area(common) / _area(mine))
    return worst
