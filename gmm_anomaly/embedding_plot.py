"""A scatter picture of pixel embeddings on a plane, with the components of their classes as ellipses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

BACKGROUND = (250, 250, 250)
TEXT = (40, 40, 40)
DOT_RADIUS = 2  # pixels
LEGEND_WIDTH = 190
TITLE_HEIGHT = 28
MARGIN = 16

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Fixed-point bits of OpenCV's coordinates.
_SHIFT = 4


@dataclass(frozen=True)
class Ellipses:
    """Gaussians on the plane.

    Attributes:
        centres: (K, 2) float. covariances: (K, 2, 2) float, symmetric, positive semi-definite.
        labels: (K,) integer classes.
        radius: of an ellipse, in standard deviations.
    """

    centres: np.ndarray
    covariances: np.ndarray
    labels: np.ndarray
    radius: float = 1.0

    def outline(self, index: int, steps: int = 72) -> np.ndarray:
        """(steps, 2) float64 points of an ellipse, radius * standard deviation from its centre."""
        values, vectors = np.linalg.eigh(np.asarray(self.covariances[index], dtype=np.float64))
        angle = np.linspace(0, 2 * math.pi, steps, endpoint=False)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        half_axes = self.radius * np.sqrt(values.clip(min=0))
        return np.asarray(self.centres[index], dtype=np.float64) + (circle * half_axes) @ vectors.T


@dataclass(frozen=True)
class View:
    """The square of the plane that a picture shows, at one scale in both directions.

    Attributes:
        left, top: coordinates of the middle of the picture's first pixel; the second one grows upwards.
        scale: pixels per unit.
    """

    left: float
    top: float
    scale: float

    @classmethod
    def around(cls, coordinates: np.ndarray, size: int) -> View:
        """The smallest square of ``size`` pixels that shows all coordinates (N, 2), with a margin."""
        low, high = coordinates.min(axis=0), coordinates.max(axis=0)
        extent = float((high - low).max())
        room = size - 1 - 2 * MARGIN
        scale = room / extent if extent > 0 else 1.0
        middle = (low + high) / 2
        half = (size - 1) / 2 / scale
        return cls(float(middle[0]) - half, float(middle[1]) + half, scale)

    def pixels(self, coordinates: np.ndarray) -> np.ndarray:
        """(..., 2) coordinates -> (..., 2) float64 columns and rows."""
        x, y = coordinates[..., 0], coordinates[..., 1]
        return np.stack([(x - self.left) * self.scale, (self.top - y) * self.scale], axis=-1)


def plot_embedding(
    points: np.ndarray,
    labels: np.ndarray,
    ellipses: Ellipses,
    colors: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    title: str = "",
    size: int = 640,
) -> np.ndarray:
    """Dots for pixels, rarer classes above commoner ones; outlines for components; a legend of what is there.

    Args:
        points: (N, 2) float, N >= 1. labels: (N,) integers in ``0 .. C-1``.
        ellipses: of the components.
        colors: RGB of the C classes, 0 to 255. names: of the C classes, ASCII (others become "?").
        title: a line above the plot, ASCII.
        size: height and width of the plot itself.

    Returns:
        (28 + size, size + 190, 3) uint8 RGB.

    Raises:
        ValueError: no points, shapes that do not fit each other, or classes without a colour or name.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    _check(points, labels, ellipses, colors, names)
    count = np.bincount(labels, minlength=len(names))
    outlines = [ellipses.outline(index) for index in range(len(ellipses.labels))]
    view = View.around(np.concatenate([points, *outlines]), size)

    plot = np.full((size, size, 3), BACKGROUND, np.uint8)
    order = np.argsort(-count[labels], kind="stable")
    dots = _fixed_point(view.pixels(points))[order].tolist()
    radius = DOT_RADIUS << _SHIFT
    for dot, label in zip(dots, labels[order], strict=True):
        cv2.circle(plot, dot, radius, _color(colors, label), cv2.FILLED, cv2.LINE_AA, _SHIFT)
    for outline, label in zip(outlines, ellipses.labels, strict=True):
        line = _fixed_point(view.pixels(outline))[:, None]
        # A dark rim, for a line is lost among dots of its own colour.
        cv2.polylines(plot, [line], True, TEXT, 4, cv2.LINE_AA, _SHIFT)
        cv2.polylines(plot, [line], True, _color(colors, label), 2, cv2.LINE_AA, _SHIFT)

    present = sorted({*labels.tolist(), *np.asarray(ellipses.labels).tolist()})
    picture = np.concatenate([plot, _legend(present, count, colors, names, size)], axis=1)
    bar = np.full((TITLE_HEIGHT, picture.shape[1], 3), BACKGROUND, np.uint8)
    _write(bar, title, (8, 20), 0.5)
    return np.concatenate([bar, picture])


def _legend(
    present: Sequence[int],
    count: np.ndarray,
    colors: Sequence[Sequence[int]],
    names: Sequence[str],
    height: int,
) -> np.ndarray:
    """Classes with their numbers of pixels; where there are too many, the commonest."""
    panel = np.full((height, LEGEND_WIDTH, 3), BACKGROUND, np.uint8)
    step = 18
    room = (height - 2 * MARGIN) // step
    shown = sorted(present, key=lambda label: -count[label])[: room if len(present) <= room else room - 1]
    for line, label in enumerate(shown):
        top = MARGIN + line * step
        cv2.rectangle(panel, (8, top), (20, top + 12), _color(colors, label), cv2.FILLED)
        _write(panel, f"{names[label][:15]} {count[label]}", (28, top + 11), 0.42)
    if len(shown) < len(present):
        _write(panel, f"and {len(present) - len(shown)} more", (28, MARGIN + len(shown) * step + 11), 0.42)
    return panel


def _write(picture: np.ndarray, text: str, at: tuple[int, int], scale: float) -> None:
    ascii_text = text.encode("ascii", "replace").decode("ascii")
    cv2.putText(picture, ascii_text, at, _FONT, scale, TEXT, 1, cv2.LINE_AA)


def _fixed_point(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * (1 << _SHIFT)).astype(np.int32)


def _color(colors: Sequence[Sequence[int]], label: int) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in colors[int(label)])
    return red, green, blue


def _check(
    points: np.ndarray,
    labels: np.ndarray,
    ellipses: Ellipses,
    colors: Sequence[Sequence[int]],
    names: Sequence[str],
) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"points: expected shape (N >= 1, 2), found {points.shape}")
    if labels.shape != (len(points),):
        raise ValueError(f"labels: expected shape ({len(points)},), found {labels.shape}")
    kinds = len(ellipses.labels)
    if np.shape(ellipses.centres) != (kinds, 2) or np.shape(ellipses.covariances) != (kinds, 2, 2):
        raise ValueError(
            f"ellipses: expected {kinds} centres (K, 2) and covariances (K, 2, 2), found "
            f"{np.shape(ellipses.centres)} and {np.shape(ellipses.covariances)}"
        )
    if len(colors) != len(names):
        raise ValueError(f"expected as many colors as names, found {len(colors)} and {len(names)}")
    for what, found in (("labels", labels), ("ellipses.labels", np.asarray(ellipses.labels))):
        if found.size and not (0 <= found.min() and found.max() < len(names)):
            raise ValueError(f"{what}: expected classes in 0 .. {len(names) - 1}, found {found.max()}")
