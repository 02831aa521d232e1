"""Charts as inline SVG, drawn by matplotlib, in colours that the page's style sets for light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn in these colours; on the page each becomes the variable of that name.
COLORS = {
    "#0b66c3": "s0", "#d1600a": "s1", "#15803d": "s2", "#a21caf": "s3", "#0e7490": "s4", "#8a5a12": "s5",
    "#c81e1e": "s6", "#64748b": "s7", "#5a6675": "soft", "#d9dfe7": "edge",
}  # fmt: skip
LINES, SOFT, EDGE = list(COLORS)[:8], "#5a6675", "#d9dfe7"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10.5,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": EDGE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "xtick.color": SOFT,
    "xtick.bottom": False,
    "ytick.color": SOFT,
    "ytick.left": False,
}
SIZE = (5.0, 3.4)  # inches of 72 units
POINTS = 240  # of a curve of the training
PEAKED = 20.0  # percent of a label in one bin, beyond which a linear axis shows nothing else


class Chart(NamedTuple):
    """A drawing; the page writes its title and its legend: (class of the swatch, name of the curve, note)."""

    title: str
    svg: Markup
    legend: list[tuple[str, str, str]]


class Line(NamedTuple):
    """A named curve of n points; where a coordinate is None or NaN the line is broken."""

    name: str
    x: Iterable[float | None]
    y: Iterable[float | None]
    note: str = ""


def _is_dashed(index: int) -> bool:
    """The second four of the eight colours are dashed, and the other way round in their second round: sixteen
    curves look different."""
    return bool((index // 4 + index // 8) % 2)


@matplotlib.rc_context(STYLE)
def line_charts(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str = "",
    *,
    unit: bool = False,
    guide: float | None = None,
) -> list[Chart]:
    """The one chart of curves over a pair of axes, in eight colours; none without a curve.

    Args:
        unit: both axes go from 0 to 1; else y starts at 0 where nothing is negative.
        guide: y of a dotted horizontal line.
    """
    if not lines:
        return []
    axes = _axes(x_label, y_label)
    for index, line in enumerate(lines):
        x, y = (np.array(list(values), float) for values in (line.x, line.y))
        if len(x) == 1:
            # A lone point is a short dash.
            x, y = np.array([x[0] - 0.5, x[0] + 0.5]), y.repeat(2)
        dashes = "--" if _is_dashed(index) else "-"
        axes.plot(x, y, dashes, color=LINES[index % 8])
    if guide is not None:
        axes.axhline(guide, color=SOFT, linestyle=":", linewidth=1.2)
    whole = all(value.is_integer() for value in axes.dataLim.intervalx)
    axes.locator_params(nbins=6)
    axes.locator_params("x", integer=whole and not unit)
    if unit:
        axes.set(xlim=(0, 1), ylim=(0, 1))
    elif axes.dataLim.y0 >= 0 and axes.get_ylim()[1] > 0:
        axes.set_ylim(bottom=0)
    legend = [
        (f"s{index % 8}{' dashed' if _is_dashed(index) else ''}", line.name, line.note)
        for index, line in enumerate(lines)
    ]
    # A single line needs no legend, unless it has something to say.
    return [Chart(title, _svg(axes), legend if len(lines) > 1 or lines[0].note else [])]


@matplotlib.rc_context(STYLE)
def histogram_chart(title: str, bins: Mapping[str, Any], threshold: float | str | None) -> Chart:
    """Each label's share of pixels per bin, so that few anomalous pixels stand beside many known ones; where
    most pixels of a label share a bin, the shares are logarithmic.

    Args:
        bins: "edges" (n + 1,), "known" and "anomalous" (n,) pixels.
        threshold: of the best F1, a vertical line; left out where it lies outside.
    """
    axes = _axes("score, higher is more anomalous", "% of the label's pixels")
    edges, labels = np.array(bins["edges"], float), ("known", "anomalous")
    shares = [100 * np.array(bins[label], float) / max(sum(bins[label]), 1) for label in labels]
    for share, color in zip(shares, LINES, strict=False):
        axes.stairs(share, edges, fill=True, alpha=0.25, color=color)
        axes.stairs(share, edges, color=color, linewidth=1.3)
    if max(share.max() for share in shares) > PEAKED:
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 100)
        axes.yaxis.set_major_formatter("{x:g}")  # the scale brought its own
    legend = [(f"s{index}", label, "") for index, label in enumerate(labels)]
    marker = np.array(threshold, float)  # None becomes NaN
    if edges[0] <= marker <= edges[-1]:
        axes.axvline(marker, color=SOFT, linestyle=":", linewidth=1.2)
        legend.append(("dotted", "best F1", f"at {marker:.4g}"))
    return Chart(title, _svg(axes), legend)


def training_charts(groups: Mapping[str, Mapping[str, np.ndarray]]) -> list[Chart]:
    """A chart each of {title: {scalar: (n, 2) iterations and values}}; means over neighbours where there are
    many."""
    charts = []
    for title, scalars in groups.items():
        lines = []
        for name, values in scalars.items():
            parts = np.array_split(values, min(POINTS, len(values)))
            x, y = np.array([part.mean(axis=0) for part in parts]).T
            # What the title says already the legend need not say again.
            lines.append(Line("" if name == title else name, x, y, f"at the end {values[-1, 1]:.4g}"))
        charts += line_charts(title, lines, "iteration")
    return charts


def score_charts(found: Mapping[str, tuple[dict[str, Any], dict[str, Any]]], prefix: str = "") -> list[Chart]:
    """Precision and recall, and ROC, of {name: (curves, numbers of the same score)}."""
    precision, receiver = [], []
    for name, (drawn, numbers) in found.items():
        curve = drawn["curve"]
        notes = [
            "" if numbers.get(key) is None else f"{key} {float(numbers[key]):.4f}" for key in ("AP", "AUROC")
        ]
        precision.append(Line(name, curve["recall"], curve["precision"], notes[0]))
        receiver.append(Line(name, curve["fpr"], curve["recall"], notes[1]))
    titles = f"{prefix}Precision and recall", f"{prefix}ROC; dotted: 95 % of the anomalous pixels"
    rates = "false positive rate", "true positive rate"
    return [
        *line_charts(titles[0], precision, "recall", "precision", unit=True),
        *line_charts(titles[1], receiver, *rates, unit=True, guide=0.95),
    ]


def _axes(x_label: str, y_label: str) -> Axes:
    # Fixed margins: matplotlib's own layout takes as long as all the drawing.
    box = (0.16, 0.16, 0.81, 0.8)
    axes = Figure(figsize=SIZE).add_axes(box, xlabel=x_label, ylabel=y_label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    return axes


def _svg(axes: Axes) -> Markup:
    """The drawing as markup that can stand in a page many times: no head, no size, no names."""
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<(defs|metadata)>.*?</\1>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (id|clip-path|width|height|xmlns:xlink|version)="[^"]*"', "", text)
    text = re.sub("#[0-9a-f]{6}", lambda found: f"var(--{COLORS.get(found[0], 'soft')})", text)
    return Markup(re.sub(r">\s+<", "><", text))
