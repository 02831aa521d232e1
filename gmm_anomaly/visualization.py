"""Pictures of labels, scores and embeddings: pure functions that give (H, W, 3) uint8 RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

VOID_COLOR = (0, 0, 0)
CAPTION_BACKGROUND = (24, 24, 24)
CAPTION_COLOR = (240, 240, 240)
SEPARATOR = 4  # pixels between panels
MAX_PANEL_WIDTH = 1024  # wider ones are shrunk
LEGEND_LINES = 30

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colorize_labels(label: np.ndarray, colors: Sequence[Sequence[int]]) -> np.ndarray:
    """Paint a label image.

    Args:
        label: (H, W) integers. colors: RGB of class 0, 1, …; 0 to 255.

    Returns:
        (H, W, 3) uint8; every value without a colour (255 for instance) is black.
    """
    table = np.concatenate([np.asarray(colors, np.uint8), np.asarray([VOID_COLOR], np.uint8)])
    known = (label >= 0) & (label < len(table) - 1)
    return table[np.where(known, label, len(table) - 1)]


def heat_map(score: np.ndarray, low: float, high: float) -> np.ndarray:
    """Paint a score map with the inferno colour map: black to purple to yellow, brighter = higher.

    Args:
        score: (H, W) float without NaN; what is beyond the range saturates.
        low, high: scores of the darkest and the brightest colour; of several frames, to make them comparable.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    # Clipping first keeps infinities out of the arithmetic.
    levels = np.clip(np.asarray(score, dtype=np.float32), low, high) - low
    levels *= 255.0 / (high - low) if high > low else 0.0
    return cv2.applyColorMap(np.rint(levels).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()


def robust_range(score: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99.8 of the finite scores, over which a heat map spreads its colours; (0, 0) without
    any."""
    finite = np.asarray(score, dtype=np.float32)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, [1.0, 99.8])
    return float(low), float(high)


def overlay(image: np.ndarray, color: np.ndarray, alpha: float | np.ndarray = 0.5) -> np.ndarray:
    """Blend a painting over an image.

    Args:
        image, color: (H, W, 3) uint8. alpha: weight of ``color`` in [0, 1], a number or (H, W).

    Returns:
        (H, W, 3) uint8.
    """
    weight = np.asarray(alpha, dtype=np.float32)
    weight = weight[..., None] if weight.ndim else weight
    return np.rint(image * (1 - weight) + color * weight).astype(np.uint8)


def side_by_side(panels: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Join pictures in a row, each under its caption; panels wider than 1024 pixels are shrunk.

    Args:
        panels: (H, W, 3) uint8, all of one size.
        captions: one for each panel, ASCII (OpenCV's fonts have no other letters; others become "?"). A
            caption too long for its panel is written smaller, then cut.

    Returns:
        (H', W', 3) uint8.
    """
    columns: list[np.ndarray] = []
    for panel, caption in zip(panels, captions, strict=True):
        height, width = panel.shape[:2]
        if width > MAX_PANEL_WIDTH:
            size = (MAX_PANEL_WIDTH, max(1, round(height * MAX_PANEL_WIDTH / width)))
            panel = cv2.resize(panel, size, interpolation=cv2.INTER_AREA)
        column = np.concatenate([caption_bar(caption, panel.shape[1]), panel])
        if columns:
            columns.append(np.full((column.shape[0], SEPARATOR, 3), CAPTION_BACKGROUND, np.uint8))
        columns.append(column)
    return np.concatenate(columns, axis=1)


def caption_bar(caption: str, width: int) -> np.ndarray:
    """A strip of text over a panel, (B, width, 3) uint8 RGB; the size of its letters, and so B, follow the
    panel's width. A text too long is written smaller, down to half the size, then cut."""
    text = caption.encode("ascii", "replace").decode("ascii")
    scale = float(np.clip(width / 900, 0.42, 1.0))
    margin = max(4, round(9 * scale))
    height = round(30 * scale) + margin
    bar = np.full((height, width, 3), CAPTION_BACKGROUND, np.uint8)

    # Bold letters are wider in some builds of OpenCV.
    thickness = 2 if scale > 0.8 else 1

    def text_width(size: float) -> int:
        return cv2.getTextSize(text, _FONT, size, thickness)[0][0]

    room = width - 2 * margin
    size = scale * float(np.clip(room / max(text_width(scale), 1), 0.5, 1.0))
    while text and text_width(size) > room:
        text = text[:-1]
    text_height = cv2.getTextSize("Ag", _FONT, size, thickness)[0][1]
    place = margin, (height + text_height) // 2
    return cv2.putText(bar, text, place, _FONT, size, CAPTION_COLOR, thickness, cv2.LINE_AA)


def plot_embedding(
    features: np.ndarray,
    labels: np.ndarray,
    means: np.ndarray,
    scales: np.ndarray,
    owners: np.ndarray,
    colors: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    title: str = "",
    size: int = 640,
) -> np.ndarray:
    """Pixels' embeddings on the plane of their largest variance (PCA) as dots, rarer classes above commoner
    ones; components of the classes' mixtures as ellipses of one standard deviation.

    Args:
        features: (N, D) float, N >= 1, D >= 2. labels: (N,) integers in ``0 .. C-1``.
        means, scales: (K, D) float, means and standard deviations of components. owners: (K,) their classes.
        colors: RGB of the C classes, 0 to 255. names: of the C classes.
        title: a line above the plot, before what the axes explain.
        size: height and width of the plot itself in pixels.

    Returns:
        (size + 30, size + 200, 3) uint8 RGB.
    """
    # Not every user of this module waits for it.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse, Patch

    features = np.asarray(features, np.float64)
    origin = features.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(features.T, bias=True))
    plane = directions[:, :-3:-1]
    # An axis's largest entry is positive, so that pictures of one training do not flip for nothing.
    plane = plane * np.where(plane[np.abs(plane).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    first, second = variances[:-3:-1] / max(variances.sum(), np.finfo(float).tiny)

    count = np.bincount(labels, minlength=len(names))
    order = np.argsort(-count[labels], kind="stable")
    palette = np.asarray(colors) / 255
    width, height = size + 200, size + 30
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        axes = figure.add_axes((0, 0, size / width, size / height))
        axes.scatter(*((features - origin) @ plane)[order].T, s=9, c=palette[labels[order]], linewidths=0)
        for mean, scale, owner in zip((means - origin) @ plane, scales, owners, strict=True):
            values, vectors = np.linalg.eigh(plane.T @ (np.square(scale)[:, None] * plane))
            shape = mean, *(2 * np.sqrt(values.clip(min=0)))
            angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
            # A dark rim, for a line is lost among dots of its own colour.
            for color, line in (("0.2", 3.0), (palette[owner], 1.5)):
                axes.add_patch(Ellipse(*shape, angle=angle, fill=False, edgecolor=color, linewidth=line))
        axes.autoscale_view()
        axes.set_aspect("equal", "datalim")
        axes.axis("off")
        present = sorted({*labels.tolist(), *np.asarray(owners).tolist()}, key=lambda label: -count[label])
        entries = [Patch(color=palette[label], label=f"{names[label]} {count[label]}") for label in present]
        if len(entries) > LEGEND_LINES:
            entries[LEGEND_LINES:] = [Patch(alpha=0, label=f"and {len(entries) - LEGEND_LINES} more")]
        figure.legend(handles=entries, loc="upper left", bbox_to_anchor=(size / width, size / height))
        explained = f"axes of {first:.0%} and {second:.0%} of the variance, ellipses of one sigma"
        figure.text(0.01, 0.99, f"{title}: {explained}", verticalalignment="top")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
