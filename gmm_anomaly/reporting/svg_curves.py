"""Charts as inline SVG that takes its colours from the page: lines, and histograms of two labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .axes import Axis, limits, tick_text, ticks
from .markup import Html, breakable, join, tag

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 212
COLORS = 8  # classes s0 … s7 of the style
PEAKED = 20.0  # percent of a label in one bin, beyond which a linear axis shows nothing else
LEAST_EXPONENT = -3.0  # of a logarithmic axis of percents


@dataclass(frozen=True)
class Line:
    """A named curve: (n,) x and y; where one of them is not finite the line is broken."""

    name: str
    x: np.ndarray
    y: np.ndarray
    note: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    guide: float | None = None,
) -> Html:
    """Curves over one pair of axes, with a legend below where there are several.

    Args:
        title: above the chart. lines: at least one; colours repeat after eight.
        x_range, y_range: by default what the lines need; ``from_zero`` starts a positive y axis at 0.
        guide: y of a dotted horizontal line.
    """
    x_range = x_range or _span(np.concatenate([line.x for line in lines]))
    y_range = y_range or limits(np.concatenate([line.y for line in lines]), from_zero=from_zero)
    x_axis, y_axis = _axes(x_range, y_range)
    drawn = [_polyline(line, index, x_axis, y_axis) for index, line in enumerate(lines)]
    if guide is not None:
        at = f"{float(y_axis(guide)):.1f}"
        drawn.append(tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="guide"))
    # A single line needs no legend, unless it has something to say.
    legend = _legend(lines) if len(lines) > 1 or lines[0].note else None
    return _figure(title, join([_grid(x_axis, y_axis, x_label, y_label), drawn]), legend)


def histogram_chart(
    title: str,
    edges: np.ndarray,
    counts: Sequence[tuple[str, np.ndarray]],
    *,
    x_label: str,
    marker: tuple[str, float] | None = None,
) -> Html:
    """Steps of each label's share of pixels per bin, so that few anomalous pixels stand beside many known.

    Args:
        edges: (n + 1,) ascending. counts: names, and (n,) pixels. Where most pixels of a label share a bin,
            the shares are drawn logarithmically.
        marker: text and x of a vertical line, left out where it lies outside.
    """
    shares = [(name, 100.0 * pixels / max(float(pixels.sum()), 1.0)) for name, pixels in counts]
    top = max(float(share.max()) for _, share in shares)
    logarithmic = top > PEAKED
    y_range = (LEAST_EXPONENT, 2.0) if logarithmic else (0.0, top * 1.05 or 1.0)
    x_axis, y_axis = _axes((float(edges[0]), float(edges[-1])), y_range)
    drawn = []
    for index, (_, share) in enumerate(shares):
        x = np.concatenate([edges[:1], np.repeat(edges, 2)[1:-1], edges[-1:]])
        y = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
        if logarithmic:
            y = np.log10(np.maximum(y, 10.0**LEAST_EXPONENT))
        points = _points(x_axis(x), y_axis(y))
        drawn.append(tag("polyline", points=points, class_=f"area s{index}"))
    entries = [_entry(index, name, "") for index, (name, _) in enumerate(shares)]
    if marker is not None and edges[0] <= marker[1] <= edges[-1]:
        at = f"{float(x_axis(marker[1])):.1f}"
        drawn.append(tag("line", x1=at, x2=at, y1=TOP, y2=BOTTOM, class_="guide"))
        entries.append(tag("li", tag("span", class_="swatch dotted"), f"{marker[0]} {marker[1]:.4g}"))
    body = join([_grid(x_axis, y_axis, x_label, "% of the label's pixels", logarithmic), drawn])
    return _figure(title, body, tag("ul", entries, class_="legend"))


def _span(x: np.ndarray) -> tuple[float, float]:
    finite = x[np.isfinite(x)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> tuple[Axis, Axis]:
    return Axis(*x_range, LEFT, RIGHT), Axis(*y_range, BOTTOM, TOP)


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, logarithmic: bool = False) -> Html:
    """``logarithmic``: the y axis holds exponents of ten."""
    parts = []
    for place in ticks(y_axis.low, y_axis.high):
        at = float(y_axis(place))
        value = 10.0**place if logarithmic else place
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid"))
        parts.append(tag("text", tick_text(value), x=LEFT - 5, y=f"{at + 3.5:.1f}", text_anchor="end"))
    for value in ticks(x_axis.low, x_axis.high):
        at = float(x_axis(value))
        parts.append(tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=TOP, y2=BOTTOM, class_="grid"))
        parts.append(tag("text", tick_text(value), x=f"{at:.1f}", y=BOTTOM + 15, text_anchor="middle"))
    middle = (TOP + BOTTOM) / 2
    parts.append(
        tag("text", x_label, x=(LEFT + RIGHT) / 2, y=HEIGHT - 7, text_anchor="middle", class_="label")
    )
    turned = f"rotate(-90 10 {middle})"
    parts.append(tag("text", y_label, x=10, y=middle, text_anchor="middle", transform=turned, class_="label"))
    return join(parts)


def _polyline(line: Line, index: int, x_axis: Axis, y_axis: Axis) -> Html:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    pieces = []
    for piece in np.split(np.arange(len(x)), np.flatnonzero(~finite)):
        piece = piece[finite[piece]]
        if len(piece) == 1:
            # A lone point is a short dash of the line's round ends.
            piece = np.repeat(piece, 2)
        if len(piece):
            clipped = np.clip(y[piece], y_axis.low, y_axis.high)
            points = _points(x_axis(np.clip(x[piece], x_axis.low, x_axis.high)), y_axis(clipped))
            pieces.append(tag("polyline", points=points))
    dashed = " dashed" if index // 4 % 2 else ""
    return tag("g", tag("title", line.name), pieces, class_=f"curve s{index % COLORS}{dashed}")


def _points(x: np.ndarray, y: np.ndarray) -> str:
    pairs = [f"{left:.1f},{top:.1f}" for left, top in zip(x, y, strict=True)]
    # Neighbours that fall on one point of the drawing are one, but a dash keeps its two ends.
    kept = [pair for index, pair in enumerate(pairs) if index == 0 or pair != pairs[index - 1]]
    return " ".join(kept if len(kept) > 1 else kept * 2)


def _legend(lines: Sequence[Line]) -> Html:
    return tag(
        "ul", [_entry(index, line.name, line.note) for index, line in enumerate(lines)], class_="legend"
    )


def _entry(index: int, name: str, note: str) -> Html:
    dashed = " dashed" if index // 4 % 2 else ""
    swatch = tag("span", class_=f"swatch s{index % COLORS}{dashed}")
    return tag("li", swatch, name, tag("small", note) if note else None)


def _figure(title: str, body: Html, legend: Html | None) -> Html:
    drawing = tag("svg", body, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return tag("figure", tag("figcaption", breakable(title)), drawing, legend, class_="chart")
