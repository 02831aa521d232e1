"""Objects that no training street holds, set down on and beside the road of a finished scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from .anomaly_shapes import SHAPES, Pen
from .camera import Camera
from .canvas import Canvas, Frame
from .labels import ANOMALY_LABEL
from .patterns import PATTERNS, pattern_image
from .street import Street

MAX_SHARE = 0.1  # of the picture, over all anomalies together; void borders come on top


class Solid(Protocol):
    """What an object tells about the room it takes up: centre, nearest depth, half width and height."""

    @property
    def x(self) -> float: ...

    @property
    def z(self) -> float: ...

    @property
    def near(self) -> float: ...

    @property
    def reach(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Anomaly:
    """height: metres. mirror: -1 or 1. seed: of the shape's own random details."""

    x: float
    z: float
    shape: str
    height: float
    mirror: int
    pattern: str
    colours: np.ndarray
    period: float
    turn: float
    offset: tuple[int, int]
    seed: int

    @property
    def reach(self) -> tuple[float, float]:
        return SHAPES[self.shape][1] * self.height / 2, self.height

    @property
    def near(self) -> float:
        return self.z

    def cast(self, frame: Frame) -> None:
        half = self.reach[0]
        for x in np.linspace(-0.6, 0.6, 3) * half:
            frame.cast(self.x + float(x), self.z + 0.1, 0.3 * half, 0.0, 0.0, 230)
            frame.cast(self.x + float(x), self.z, 0.25 * half, 0.0, 0.8 * self.height, 205)

    def paint(self, frame: Frame, sunlit: float) -> None:
        u, v = frame.camera.ground(self.x, self.z)
        size = frame.camera.scale(self.z) * self.height
        half = self.reach[0] * frame.camera.scale(self.z)
        canvas = Canvas(frame, (u - half, v - 1.02 * size, u + half, v + 0.01 * size))
        if canvas.empty:
            return
        SHAPES[self.shape][0](Pen(canvas, u, v, size, self.mirror), np.random.default_rng(self.seed))
        rgba = canvas.rgba
        rows, columns = rgba.shape[:2]
        period = self.period * size * canvas.ss
        pattern = pattern_image(self.pattern, rows, columns, period, self.colours, self.offset, self.turn)
        pattern *= _roundness(frame, rgba[..., 3], canvas.ss * size)[..., None]
        rgba[..., :3] = np.minimum(rgba[..., :3] * pattern, rgba[..., 3:])
        canvas.paste(ANOMALY_LABEL, self.z, sunlit)


def _roundness(frame: Frame, alpha: np.ndarray, size: float) -> np.ndarray:
    """Brighter where the outline bulges towards the sun, darker away from it and below."""
    width = max(3, int(size * 0.12) | 1)
    soft = cv2.blur(alpha, (width, width)).astype(np.float32) * np.float32(1 / 255)
    side = float(np.sign(frame.light.sun[0])) * (1.0 - frame.light.ambient)
    slope = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3) * (-side * width * 0.12)
    rise = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3) * (width * 0.06)
    return np.clip(0.65 + 0.38 * soft + slope + rise, 0.3, 1.3)


def sample_anomalies(
    rng: np.random.Generator, camera: Camera, street: Street, solids: Sequence[Solid]
) -> list[Anomaly]:
    """1 to 4 anomalies that stand on the street, inside the picture, mostly unhidden by known objects.

    Heights in pixels are drawn first (log-uniform), so that small and large ones are equally likely; the
    depth follows from the height in metres."""
    placed: list[Anomaly] = []
    room = MAX_SHARE * camera.height * camera.width
    count = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1]))
    for index in range(count):
        best: tuple[float, Anomaly] | None = None
        for _ in range(30):
            candidate = _sample_anomaly(rng, camera, street, main=index == 0)
            area = _box_area(camera, candidate)
            if area > room:
                continue
            hidden = _hidden_share(camera, candidate, [*solids, *placed])
            hidden = max([hidden, *(_hidden_share(camera, other, [candidate]) for other in placed)])
            if best is None or hidden < best[0]:
                best = (hidden, candidate)
            if hidden < 0.1:
                break
        if best is not None and (index == 0 or best[0] < 0.3):
            placed.append(best[1])
            room -= _box_area(camera, best[1])
    return placed


def _sample_anomaly(rng: np.random.Generator, camera: Camera, street: Street, main: bool) -> Anomaly:
    shape = str(rng.choice(list(SHAPES)))
    _, aspect, (low, high), patterns = SHAPES[shape]
    height = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    smallest, largest = (0.16, 0.5) if main else (0.06, 0.28)
    rows = camera.height * np.exp(rng.uniform(np.log(smallest), np.log(largest))) / np.sqrt(max(aspect, 1.0))
    z = float(np.clip(camera.focal * height / rows, 5.0, 45.0))
    height = float(np.clip(rows * z / camera.focal, 0.6 * low, 1.4 * high))
    half = aspect * height / 2
    # Sideways: within the picture and between the walls.
    margin = 0.04 * camera.width
    shift = float(camera.shift(z))
    left = max((margin - camera.u0) * z / camera.focal - shift + half, street.walls[0] + half)
    right = min((camera.width - margin - camera.u0) * z / camera.focal - shift - half, street.walls[1] - half)
    if rng.random() < 0.65:
        left, right = max(left, street.left), min(right, street.right)
    x = float(rng.uniform(left, right)) if left < right else (left + right) / 2
    names = patterns or PATTERNS
    return Anomaly(
        x=x,
        z=z,
        shape=shape,
        height=height,
        mirror=int(rng.choice([-1, 1])),
        pattern=str(rng.choice(names)),
        colours=_sample_colours(rng),
        period=float(rng.uniform(0.16, 0.5)),
        turn=float(rng.uniform(0, np.pi)),
        offset=(int(rng.integers(0, 4096)), int(rng.integers(0, 4096))),
        seed=int(rng.integers(0, 2**31)),
    )


def _sample_colours(rng: np.random.Generator) -> np.ndarray:
    """Two colours, natural (browns, greys) or painted; their brightness always differs."""
    if rng.random() < 0.5:
        base = np.array([1.0, rng.uniform(0.7, 0.95), rng.uniform(0.4, 0.85)]) * rng.uniform(0.35, 0.95)
        other = base * rng.uniform(0.2, 0.6)
    else:
        base = rng.uniform(0.15, 1.0, 3)
        other = rng.uniform(0.05, 1.0, 3)
        if abs(base.mean() - other.mean()) < 0.2:
            other = other * 0.4
    return np.stack([base, other])


def _screen_box(
    camera: Camera, x: float, z: float, half: float, height: float
) -> tuple[float, float, float, float]:
    u, v = camera.ground(x, z)
    scale = camera.scale(z)
    return u - half * scale, v - height * scale, u + half * scale, v


def _box_area(camera: Camera, anomaly: Anomaly) -> float:
    left, top, right, bottom = _screen_box(camera, anomaly.x, anomaly.z, *anomaly.reach)
    return max(0.0, right - left) * max(0.0, bottom - top) * 0.75


def _hidden_share(camera: Camera, anomaly: Anomaly, solids: Sequence[Solid]) -> float:
    """Largest share of the anomaly's box that one nearer solid's box, or the picture's lower edge, covers; 1
    where it would stand inside a solid."""
    mine = _screen_box(camera, anomaly.x, anomaly.z, *anomaly.reach)
    area = max((mine[2] - mine[0]) * (mine[3] - mine[1]), 1e-6)
    worst = max(0.0, (mine[3] - camera.height) / max(mine[3] - mine[1], 1e-6))
    for solid in solids:
        half, height = solid.reach
        near, far = solid.near, 2.0 * solid.z - solid.near
        if near - 0.5 < anomaly.z < far + 0.5 and abs(solid.x - anomaly.x) < half + anomaly.reach[0]:
            return 1.0
        if near > anomaly.z:
            continue
        ends = [_screen_box(camera, solid.x, max(z, 1.0), half, height) for z in (near, far)]
        left, top = min(e[0] for e in ends), min(e[1] for e in ends)
        right, bottom = max(e[2] for e in ends), max(e[3] for e in ends)
        wide = min(mine[2], right) - max(mine[0], left)
        tall = min(mine[3], bottom) - max(mine[1], top)
        if wide > 0 and tall > 0:
            worst = max(worst, wide * tall / area)
    return worst
