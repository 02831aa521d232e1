"""Pictures of labels and scores: pure functions on (H, W, 3) uint8 RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

VOID_COLOR = (0, 0, 0)
CAPTION_BACKGROUND = (24, 24, 24)
CAPTION_COLOR = (240, 240, 240)
SEPARATOR = 4  # pixels between panels

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colorize_labels(
    label: np.ndarray, colors: Sequence[Sequence[int]], void_color: Sequence[int] = VOID_COLOR
) -> np.ndarray:
    """Paint a label image.

    Args:
        label: (H, W) integers.
        colors: RGB of class 0, 1, …; 0 to 255.
        void_color: RGB of every value without a colour (255 for instance).

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: ``label`` is not (H, W) or ``colors`` not a list of RGB triples. TypeError: labels are no
            integers.
    """
    label = np.asarray(label)
    if label.ndim != 2:
        raise ValueError(f"label must be (H, W), found shape {label.shape}")
    if label.dtype.kind not in "bui":
        raise TypeError(f"label must be integers, found {label.dtype}")
    table = np.asarray(colors, dtype=np.uint8)
    if table.ndim != 2 or table.shape[1] != 3:
        raise ValueError(f"colors must be RGB triples, found an array of shape {table.shape}")
    table = np.concatenate([table, np.asarray([void_color], dtype=np.uint8)])
    known = (label >= 0) & (label < len(table) - 1)
    return table[np.where(known, label, len(table) - 1)]


def heat_map(score: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Paint a score map with the inferno colour map: black to purple to yellow, brighter = higher.

    Args:
        score: (H, W) float; infinities saturate, NaN becomes grey.
        low, high: scores of the darkest and the brightest colour. Give them to make frames comparable; by
            default the frame's own :func:`robust_range`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: ``score`` is not (H, W), or ``low`` exceeds ``high``.
    """
    values = np.asarray(score, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"score must be (H, W), found shape {values.shape}")
    if low is None or high is None:
        own_low, own_high = robust_range(values)
        low, high = own_low if low is None else low, own_high if high is None else high
    if low > high:
        raise ValueError(f"low must not exceed high, found {low} and {high}")
    missing = np.isnan(values)
    scale = 255.0 / (high - low) if high > low else 0.0
    # Clipping first keeps infinities out of the arithmetic.
    levels = (np.clip(np.where(missing, low, values), low, high) - low) * scale
    colored = cv2.applyColorMap(np.rint(levels).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    colored[missing] = 128
    return colored


def robust_range(score: np.ndarray, lower: float = 1.0, upper: float = 99.8) -> tuple[float, float]:
    """Percentiles of the finite scores, over which a heat map spreads its colours; (0, 0) without any."""
    finite = np.asarray(score, dtype=np.float32)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, [lower, upper])
    return float(low), float(high)


def overlay(image: np.ndarray, color: np.ndarray, alpha: float | np.ndarray = 0.5) -> np.ndarray:
    """Blend a painting over an image.

    Args:
        image, color: (H, W, 3) uint8.
        alpha: weight of ``color`` in [0, 1], a number or one per pixel (H, W).

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: shapes that differ, or ``alpha`` outside [0, 1].
    """
    if image.shape != color.shape or image.ndim != 3:
        raise ValueError(f"image and color must both be (H, W, 3), found {image.shape} and {color.shape}")
    weight = np.asarray(alpha, dtype=np.float32)
    if weight.min() < 0 or weight.max() > 1:
        raise ValueError(f"alpha must lie in [0, 1], found {weight.min()} to {weight.max()}")
    if weight.ndim:
        if weight.shape != image.shape[:2]:
            raise ValueError(f"alpha must be a number or {image.shape[:2]}, found shape {weight.shape}")
        weight = weight[..., None]
    return np.rint(image * (1 - weight) + color * weight).astype(np.uint8)


def side_by_side(
    panels: Sequence[np.ndarray], captions: Sequence[str], max_panel_width: int = 1024
) -> np.ndarray:
    """Join pictures in a row, each under its caption.

    Args:
        panels: (H, W, 3) uint8, all of one size.
        captions: one for each panel, ASCII (OpenCV's fonts have no other letters; others become "?"). A
            caption too long for its panel is written smaller, then cut.
        max_panel_width: wider panels are shrunk to it.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: no panel, panels of different sizes, or another number of captions.
    """
    if not panels or len(panels) != len(captions):
        raise ValueError(f"expected panels and as many captions, found {len(panels)} and {len(captions)}")
    shapes = {panel.shape for panel in panels}
    if len(shapes) > 1:
        raise ValueError(f"panels must all have one size, found {sorted(shapes)}")
    columns: list[np.ndarray] = []
    for panel, caption in zip(panels, captions, strict=True):
        height, width = panel.shape[:2]
        if width > max_panel_width:
            size = (max_panel_width, max(1, round(height * max_panel_width / width)))
            panel = cv2.resize(panel, size, interpolation=cv2.INTER_AREA)
        column = np.concatenate([_caption_bar(caption, panel.shape[1]), panel])
        if columns:
            columns.append(np.full((column.shape[0], SEPARATOR, 3), CAPTION_BACKGROUND, np.uint8))
        columns.append(column)
    return np.concatenate(columns, axis=1)


def _caption_bar(caption: str, width: int) -> np.ndarray:
    """A strip of text whose size follows the panel's width."""
    text = caption.encode("ascii", "replace").decode("ascii")
    scale = float(np.clip(width / 900, 0.42, 1.0))
    margin = max(4, round(9 * scale))
    height = round(30 * scale) + margin
    bar = np.full((height, width, 3), CAPTION_BACKGROUND, np.uint8)

    def text_width(size: float) -> int:
        return cv2.getTextSize(text, _FONT, size, 1)[0][0]

    size = scale
    room = width - 2 * margin
    if text_width(size) > room:
        size = max(0.34, scale * room / text_width(size))
    while text and text_width(size) > room:
        text = text[:-1]
    text_height = cv2.getTextSize("Ag", _FONT, size, 1)[0][1]
    thickness = 2 if size > 0.8 else 1
    cv2.putText(
        bar, text, (margin, (height + text_height) // 2), _FONT, size, CAPTION_COLOR, thickness, cv2.LINE_AA
    )
    return bar


def encode_png(picture: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 RGB picture as the bytes of a PNG file. Raises ValueError for anything else."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"picture must be (H, W, 3) uint8, found {picture.shape} {picture.dtype}")
    return bytes(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1])
