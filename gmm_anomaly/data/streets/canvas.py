"""What all parts of a street are drawn with: labels, noise, camera, daylight, the picture and its patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

# Names and RGB colours of Cityscapes in the order of its train ids, without the kinds that are not drawn.
_CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "pole": (153, 153, 153),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "car": (0, 0, 142),
}
CLASSES = tuple(_CITYSCAPES)
PALETTE = tuple(_CITYSCAPES.values())
ROAD, SIDEWALK, BUILDING, POLE, TRAFFIC_SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR = range(len(CLASSES))
ANOMALY_LABEL, IGNORE_LABEL = 254, 255

Colour = Sequence[float] | np.ndarray | float
_SHIFT = 4  # fractional bits of cv2's polygon coordinates
_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@cache
def _tile(kind: str) -> np.ndarray:
    power, lowest = {"grain": (0.0, 24), "blotch": (1.6, 3), "leaf": (1.4, 14)}[kind]
    frequency = np.hypot(np.fft.fftfreq(256, 1 / 256)[:, None], np.fft.rfftfreq(256, 1 / 256))
    spectrum = np.fft.rfft2(np.random.default_rng(2718).standard_normal((256, 256)))
    spectrum *= (frequency >= lowest) * np.maximum(frequency, 1.0) ** -power
    tile = np.fft.irfft2(spectrum)
    return np.clip(tile / (2.5 * tile.std()), -1.0, 1.0).astype(np.float32)


def noise(kind: str, x: np.ndarray, y: np.ndarray | float) -> np.ndarray:
    """Periodic noise (256 x 256) at (x, y), of any magnitude, broadcast to two dimensions: float32 of mean 0
    within -1..1.

    kind: "grain" (nearly white), "blotch" (patches of all sizes) or "leaf" (clumps of 3 to 12 pixels)."""
    # OpenCV's coordinates end at 32767.
    x, y = np.broadcast_arrays(np.mod(x, 256, dtype=np.float32), np.mod(y, 256, dtype=np.float32))
    return cv2.remap(_tile(kind), x.copy(), y.copy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


class Camera:
    """Pinhole camera. World: x metres to the right, y up from the road, z ahead; the eye is at (0, eye, 0).

    A bend moves the whole street sideways by ``bend * z**2`` up to ``bend_end`` and goes on straight from
    there, so that walls, markings and objects all bend together and depth stays one number per ground row.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.height, self.width = height, width
        # The geometric mean of both sides: other aspects crop or widen the same view.
        self.focal = rng.uniform(0.52, 0.82) * math.sqrt(2.0 * width * height)
        self.u0, self.v0 = width * rng.uniform(0.36, 0.64), height * rng.uniform(0.34, 0.5)
        self.eye = rng.uniform(1.2, 2.1)
        self.bend = rng.uniform(-1, 1) / 380.0 if rng.random() < 0.6 else 0.0
        self.bend_end = rng.uniform(30, 70)

    def shift(self, z: np.ndarray | float) -> np.ndarray:
        """Sideways metres of the street at depth ``z``."""
        near = np.minimum(z, self.bend_end)
        return self.bend * near * (2.0 * z - near)

    def project(self, points: np.ndarray | Sequence) -> np.ndarray:
        """Pixel (column, row) of world points: (N, 3) metres to (N, 2)."""
        x, y, z = np.asarray(points, np.float64).T
        scale = self.focal / np.maximum(z, 0.5)
        return np.stack([self.u0 + (x + self.shift(z)) * scale, self.v0 + (self.eye - y) * scale], axis=1)


class Light:
    """Daylight of a scene, drawn independently of the street.

    sun: unit vector to the sun. ambient: brightness of what the sun does not reach; sunlit ground is 1.
    zenith, horizon, cloud, haze: float32 RGB in 0..255. step: ground displacement (x, z) of the shadow of a
    point one metre up."""

    def __init__(self, rng: np.random.Generator) -> None:
        elevation, azimuth = np.deg2rad(rng.uniform(18, 65)), rng.uniform(-np.pi, np.pi)
        self.sun = (math.cos(elevation) * math.sin(azimuth), math.sin(elevation),
                    math.cos(elevation) * math.cos(azimuth))  # fmt: skip
        reach = min(2.5, 1.0 / self.sun[1])
        self.step = (-self.sun[0] * reach, -self.sun[2] * reach)
        self.warmth = rng.uniform(-0.6, 1.0) * (1.0 - 0.5 * elevation)
        if rng.random() < 0.35:  # overcast
            grey = rng.uniform(165, 240)
            zenith = grey * rng.uniform(0.8, 1.0) * np.array([0.93, 0.97, 1.0])
            horizon, cloud = np.full(3, grey), grey * rng.uniform(0.75, 0.95)
            self.ambient = rng.uniform(0.78, 0.92)
        else:
            zenith, self.ambient = rng.uniform((50, 110, 190), (130, 170, 240)), rng.uniform(0.42, 0.68)
            horizon, cloud = rng.uniform((190, 200, 205), (245, 240, 250)), rng.uniform(225, 255)
            horizon = np.minimum(horizon + max(self.warmth, 0.0) * np.array([25, -5, -40]), 255)
        self.zenith, self.horizon, self.cloud = np.float32([zenith, horizon, np.full(3, cloud)])
        self.haze = 0.75 * self.horizon + 0.25 * self.zenith
        self.haze_length = math.exp(rng.uniform(math.log(90), math.log(700)))

    def shade(self, normal: Sequence[float] | np.ndarray) -> float:
        """Brightness of a face with this unit normal, relative to sunlit ground."""
        facing = max(0.0, float(np.dot(normal, self.sun)))
        return min(1.2, self.ambient + (1.0 - self.ambient) * facing / max(self.sun[1], 0.35))

    def clear(self, z: np.ndarray | float) -> np.ndarray:
        """Share of an object's own colour that reaches the camera from depth ``z``, the rest being haze."""
        return np.exp(z / -self.haze_length)


class Frame:
    """The picture. image: (3, H, W) float32 RGB, 0..255 before exposure; planes, so that NumPy's inner loops
    are long. label, shadow: (H, W) uint8; shadow is how much of the sun is taken from the ground."""

    def __init__(self, camera: Camera, light: Light) -> None:
        size = (camera.height, camera.width)
        self.camera, self.light = camera, light
        self.image = np.zeros((3, *size), np.float32)
        self.label, self.shadow = np.zeros(size, np.uint8), np.zeros(size, np.uint8)

    def cast(self, footprint: np.ndarray, low: float, high: float) -> None:
        """Shadow of an upright prism: (N, 2) ground points (x, z), lower and upper end, all in metres."""
        step = np.array(self.light.step)
        ground = np.concatenate([footprint + low * step, footprint + high * step])
        world = np.insert(np.maximum(ground, (-np.inf, 1.2)), 1, 0.0, axis=1)
        # Whole pixels are enough, as shadows are blurred.
        hull = cv2.convexHull(np.rint(self.camera.project(world)).astype(np.int32))
        cv2.fillConvexPoly(self.shadow, hull, 215)

    def stand(self, x: float, z: float, unit: float, box: Sequence[float], mirror: int = 1) -> Canvas:
        """Canvas facing the camera at the ground point (x, z): its coordinates count ``unit`` metres to the
        right (left where ``mirror`` is -1) and up from there."""
        camera, scale = self.camera, self.camera.focal / z
        foot = (camera.u0 + (x + float(camera.shift(z))) * scale, camera.v0 + camera.eye * scale)
        return Canvas(self, box, foot, (mirror * unit * scale, -unit * scale))


class Thing:
    """What stands on the street: centre (x, z), depth of its nearest part, half width and height, in metres.
    Subclasses have ``cast(frame)`` for the shadow and ``paint(frame, sunlit)``, where ``sunlit`` dims all
    colours in the shadow of a building."""

    def __init__(self, x: float, z: float, half: float, height: float) -> None:
        self.x, self.z, self.near, self.half, self.height = float(x), float(z), float(z), half, height

    def ring(self, radius: float) -> np.ndarray:
        """Round footprint of this radius."""
        return CIRCLE[::3] * radius + (self.x, self.z)


class Canvas:
    """Antialiased RGBA patch over the part of ``box`` (two opposite corners x, y, x, y) inside the picture.

    Point p is pixel ``origin + unit * p``. Colours are RGB, or one grey, in 0..255. They are premultiplied by
    alpha: on a transparent ground, cv2's antialiasing blends all four channels alike, which keeps later
    shapes from showing the ground at their edges."""

    def __init__(
        self, frame: Frame, box: Sequence[float], origin: Sequence[float] = (0.0, 0.0),
        unit: Sequence[float] = (1.0, 1.0),
    ) -> None:  # fmt: skip
        (x0, y0, x1, y1), (ox, oy), (ux, uy) = box, origin, unit
        left, right = sorted((ox + ux * x0, ox + ux * x1))
        top, bottom = sorted((oy + uy * y0, oy + uy * y1))
        self.left, self.top = max(0, math.floor(left) - 2), max(0, math.floor(top) - 2)
        columns = min(frame.camera.width, math.ceil(right) + 3) - self.left
        rows = min(frame.camera.height, math.ceil(bottom) + 3) - self.top
        self.visible = rows > 0 and columns > 0
        # Outside the picture, one pixel stands for the patch; it is never pasted.
        self.rows, self.columns = (rows, columns) if self.visible else (1, 1)
        self.frame, self.texture = frame, np.float32(1.0)
        self.rgba = np.zeros((self.rows, self.columns, 4), np.uint8)
        # To fixed-point patch pixels.
        self._gain = np.array((ux, uy)) * (1 << _SHIFT)
        self._bias = np.array((ox - self.left, oy - self.top)) * (1 << _SHIFT)

    def polygon(self, points: np.ndarray | Sequence, colour: Colour) -> None:
        if self.visible:
            fixed = np.rint(np.asarray(points, np.float64) * self._gain + self._bias).astype(np.int32)
            rgb = (colour,) * 3 if isinstance(colour, float | int) else tuple(colour)
            cv2.fillPoly(self.rgba, [fixed], (*rgb, 255.0), cv2.LINE_AA, _SHIFT)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def limb(
        self, start: Sequence[float], end: Sequence[float], w0: float, w1: float, colour: Colour
    ) -> None:
        """Straight bar that tapers from width ``w0`` at ``start`` to ``w1`` at ``end``."""
        (x0, y0), (x1, y1) = start, end
        length = 2 * max(math.hypot(x1 - x0, y1 - y0), 1e-6)
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        sides = [(x0 + nx * w0, y0 + ny * w0), (x1 + nx * w1, y1 + ny * w1)]
        self.polygon([*sides, (x1 - nx * w1, y1 - ny * w1), (x0 - nx * w0, y0 - ny * w0)], colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0) -> None:
        """Filled ellipse, turned by ``turn`` radians."""
        ring = CIRCLE * (rx, ry)
        if turn:
            cos, sin = math.cos(turn), math.sin(turn)
            ring = ring @ np.array([(cos, sin), (-sin, cos)])
        self.polygon(ring + (x, y), colour)

    def noise(self, kind: str, zoom: float) -> np.ndarray:
        """Noise over the patch, ``zoom`` picture pixels per noise pixel."""
        x, y = (np.arange(length) / max(zoom, 0.4) for length in (self.columns, self.rows))
        return noise(kind, x + 37 * self.left, (y + 91 * self.top)[:, None])

    def grain(self, amount: float, zoom: float, kind: str = "blotch") -> None:
        """Multiplies the colours by noise of 1 +- ``amount`` when pasted."""
        self.texture = 1.0 + amount * self.noise(kind, zoom)

    def fray(self, zoom: float, ragged: float, contrast: float, ground: np.ndarray) -> None:
        """Frays the outline and mottles the inside, as leaves do. ground: colour where nothing is drawn."""
        leaves = self.noise("leaf", zoom)
        radius = max(3, int(zoom * 5) | 1)
        alpha = self.rgba[..., 3]
        soft = cv2.blur(alpha, (radius, radius)) * np.float32(1 / 255)
        frayed = np.clip((soft - 0.5 + ragged * leaves) * 4.0 + 0.5, 0.0, 1.0) * (soft > 0.02)
        leaves = (1.0 + contrast * leaves) * frayed
        bare = 255 - alpha
        for channel in range(3):
            colour = self.rgba[..., channel] + bare * np.float32(ground[channel] / 255.0)
            self.rgba[..., channel] = np.minimum(colour * leaves, 255.0 * frayed)
        self.rgba[..., 3] = frayed * 255.0

    def paste(self, label: int, depth: float, shade: float = 1.0) -> None:
        """Composes the patch onto the picture with the scene's haze and labels what it covers by half."""
        if not self.visible:
            return
        frame, rgba = self.frame, self.rgba
        clear = float(frame.light.clear(float(depth)))
        opacity = rgba[..., 3] * np.float32(1 / 255)
        gain = self.texture * (clear * shade)
        place = np.s_[self.top : self.top + self.rows, self.left : self.left + self.columns]
        for channel in range(3):
            plane = frame.image[channel][place]
            plane *= 1.0 - opacity
            plane += rgba[..., channel] * gain
            plane += opacity * (frame.light.haze[channel] * (1.0 - clear))
        frame.label[place][rgba[..., 3] > 127] = label
