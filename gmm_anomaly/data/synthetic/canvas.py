"""The picture under construction, and the antialiased patches that objects are drawn on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .camera import Camera
from .light import Light
from .surfaces import patch

Colour = Sequence[float] | np.ndarray
_SHIFT = 4  # fractional bits of cv2's polygon coordinates
_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


class Frame:
    """image: (3, H, W) float32 RGB, 0..255 before exposure; planes, so that NumPy's inner loops are long.
    label: (H, W) uint8. shadow: (H, W) uint8, how much of the sun objects take from the ground."""

    def __init__(self, camera: Camera, light: Light) -> None:
        size = (camera.height, camera.width)
        self.camera = camera
        self.light = light
        self.image = np.zeros((3, *size), np.float32)
        self.label = np.zeros(size, np.uint8)
        self.shadow = np.zeros(size, np.uint8)

    def shade_ground(self, points: np.ndarray, strength: int) -> None:
        """Adds the convex hull of ground points (N, 2), metres (x, z), to the shadow."""
        world = np.zeros((len(points), 3))
        world[:, 0] = points[:, 0]
        world[:, 2] = np.maximum(points[:, 1], 1.2)
        # Whole pixels are enough, as shadows are blurred.
        hull = cv2.convexHull(np.rint(self.camera.project(world)).astype(np.int32))
        cv2.fillConvexPoly(self.shadow, hull, strength)

    def cast(self, x: float, z: float, radius: float, low: float, high: float, strength: int = 200) -> None:
        """Shadow of an upright object of this radius between two heights, all in metres."""
        dx, dz = self.light.shadow_step()
        ring = _CIRCLE[::3] * radius + (x, z)
        step = np.array([dx, dz])
        self.shade_ground(np.concatenate([ring + low * step, ring + high * step]), strength)


class Canvas:
    """RGBA patch over the part of ``box`` (left, top, right, bottom in pixels) that is inside the frame.

    Colours are premultiplied by alpha: on a transparent ground, cv2's antialiasing blends all four channels
    alike, and that is what keeps later shapes from showing the ground at their edges. supersample: patch
    pixels per frame pixel and direction; 0 chooses more for smaller patches."""

    def __init__(self, frame: Frame, box: tuple[float, float, float, float], supersample: int = 0) -> None:
        height, width = frame.label.shape
        self.frame = frame
        self.left = int(max(0, np.floor(box[0]) - 2))
        self.top = int(max(0, np.floor(box[1]) - 2))
        self.right = int(min(width, np.ceil(box[2]) + 3))
        self.bottom = int(min(height, np.ceil(box[3]) + 3))
        self.empty = self.right <= self.left or self.bottom <= self.top
        size = max(self.right - self.left, self.bottom - self.top)
        self.ss = supersample or (3 if size < 40 else 2 if size < 110 else 1)
        rows, columns = max(0, self.bottom - self.top) * self.ss, max(0, self.right - self.left) * self.ss
        self.rgba = np.zeros((rows, columns, 4), np.uint8)
        self.texture: np.ndarray | None = None
        # Frame pixels to fixed-point patch pixels; pixel centres lie at whole numbers in both.
        fixed = self.ss << _SHIFT
        self._gain = float(fixed)
        self._bias = np.array([(0.5 - edge) * fixed - 0.5 * (1 << _SHIFT) for edge in (self.left, self.top)])

    def tint(self, colour: Colour) -> None:
        """Gives the transparent ground a colour, for shapes whose outline is frayed later."""
        self.rgba[..., :3] = np.clip(colour, 0, 255)

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """Filled polygon; points: (N, 2) frame pixels."""
        if self.empty:
            return
        fixed = np.rint(points * self._gain + self._bias).astype(np.int32)
        cv2.fillPoly(self.rgba, [fixed], _rgba(colour), cv2.LINE_AA, _SHIFT)

    def limb(
        self, start: Sequence[float], end: Sequence[float], width0: float, width1: float, colour: Colour
    ) -> None:
        """Straight tapering bar between two frame pixels; widths in frame pixels."""
        (x0, y0), (x1, y1) = start, end
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-6)
        nx, ny = (y0 - y1) / (2 * length), (x1 - x0) / (2 * length)
        corners = [
            (x0 + nx * width0, y0 + ny * width0),
            (x1 + nx * width1, y1 + ny * width1),
            (x1 - nx * width1, y1 - ny * width1),
            (x0 - nx * width0, y0 - ny * width0),
        ]
        self.polygon(np.array(corners), colour)

    def ellipse(
        self, centre: Sequence[float], radii: Sequence[float], colour: Colour, turn: float = 0.0
    ) -> None:
        """Filled ellipse in frame pixels, turned by ``turn`` radians."""
        ring = _CIRCLE * np.array(radii)
        if turn:
            cos, sin = math.cos(turn), math.sin(turn)
            ring = ring @ np.array([[cos, sin], [-sin, cos]])
        self.polygon(ring + np.array(centre), colour)

    def grain(self, amount: float, zoom: float, offset: tuple[int, int], kind: str = "blotch") -> None:
        """Multiplies the colours by noise when pasted: 1 +- amount; ``zoom`` frame pixels per tile pixel."""
        if not self.empty:
            rows, columns = self.bottom - self.top, self.right - self.left
            self.texture = 1.0 + amount * patch(kind, rows, columns, max(zoom, 0.5), offset)

    def leafy(self, zoom: float, offset: tuple[int, int], ragged: float, contrast: float) -> None:
        """Frays the outline and mottles the inside, as leaves do. The canvas must have been tinted."""
        if self.empty:
            return
        rows, columns = self.rgba.shape[:2]
        noise = patch("leaf", rows, columns, max(zoom * self.ss, 0.6), offset)
        radius = max(3, int(zoom * self.ss * 5) | 1)
        alpha = cv2.blur(self.rgba[..., 3], (radius, radius)).astype(np.float32)
        alpha *= 1.0 / 255.0
        frayed = (alpha - 0.5 + ragged * noise) * 4.0 + 0.5
        np.clip(frayed, 0.0, 1.0, out=frayed)
        frayed *= alpha > 0.02
        noise *= contrast
        noise += 1.0
        noise *= frayed
        for channel in range(3):
            colour = self.rgba[..., channel] * noise
            self.rgba[..., channel] = np.minimum(colour, 255.0 * frayed)
        self.rgba[..., 3] = frayed * 255.0

    def paste(self, label: int, depth: float, shade: float = 1.0) -> None:
        """Composes the patch onto the frame with the scene's haze and labels what it covers by half."""
        if self.empty:
            return
        frame = self.frame
        rgba = self.rgba
        if self.ss > 1:
            rgba = cv2.resize(
                rgba, (self.right - self.left, self.bottom - self.top), interpolation=cv2.INTER_AREA
            )
        clear = float(frame.light.clear(depth))
        alpha = rgba[..., 3]
        opacity = alpha * np.float32(1 / 255)
        behind = 1.0 - opacity
        gain = np.float32(clear * shade)
        if self.texture is not None:
            gain = self.texture * gain
        rows, columns = slice(self.top, self.bottom), slice(self.left, self.right)
        for channel in range(3):
            plane = frame.image[channel, rows, columns]
            plane *= behind
            plane += rgba[..., channel] * gain
            plane += opacity * np.float32(frame.light.haze[channel] * (1.0 - clear))
        frame.label[rows, columns][alpha > 127] = label


def _rgba(colour: Colour) -> tuple[float, float, float, float]:
    # cv2 saturates what lies outside 0..255.
    red, green, blue = colour
    return float(red), float(green), float(blue), 255.0
