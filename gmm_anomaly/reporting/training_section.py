"""Training curves from ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .markup import Html, join, tag
from .missing import missing
from .run_data import Run
from .svg_curves import Line, line_chart
from .training_log import Series

# Drawn elsewhere, or of no use as curves.
MIXTURE_PREFIXES = ("gmm/", "health/")
TIMES = ("data_time", "rank_data_time", "eta_seconds", "time")


def training_section(run: Run) -> Html:
    """Losses, learning rate, results over the iterations where a training evaluated more than once."""
    if not run.scalars:
        command = run.training_command()
        return missing("There is no metrics.json: the run trained nothing, or never wrote a line.", command)
    datasets = tuple(f"{name}/" for name in (*run.datasets, *(run.setting("DATASETS.TEST") or ())))
    losses, charts, evaluated = [], [], {}
    for key, series in run.scalars.items():
        if key in TIMES or key.startswith(MIXTURE_PREFIXES):
            continue
        if datasets and key.startswith(datasets):
            if len(series.values) > 1 and key.endswith(("/mIoU", "/AP", "/F1")):
                evaluated[key] = series
        elif "loss" in key:
            losses.append(key)
        else:
            charts.append(chart_of(key, {key: series}))
    losses.sort(key=lambda key: key != "total_loss")
    first = [chart_of("Losses", {key: run.scalars[key] for key in losses}, from_zero=True)] if losses else []
    later = [chart_of(key, {key: series}) for key, series in evaluated.items()]
    return join([_times(run.scalars), tag("div", first, charts, later, class_="charts")])


def mixture_charts(run: Run) -> list[Html]:
    """Scalars of the mixtures over the training; those that differ by class stand in one chart."""
    groups: dict[str, dict[str, Series]] = {}
    for key, series in run.scalars.items():
        if key.startswith(MIXTURE_PREFIXES):
            parts = key.split("/", 2)
            title = "/".join(parts[:2])
            by_class = len(parts) > 2
            group = groups.setdefault(f"{title} by class" if by_class else title, {})
            group[parts[2] if by_class else key] = series
    return [chart_of(title, series) for title, series in sorted(groups.items())]


def chart_of(title: str, series: Mapping[str, Series], *, from_zero: bool = False) -> Html:
    lines = []
    for name, whole in series.items():
        thin = whole.thinned()
        # What the title says already the legend need not say again.
        lines.append(Line("" if name == title else name, thin.iterations, thin.values, _last(whole.values)))
    return line_chart(title, lines, x_label="iteration", y_label="", from_zero=from_zero)


def _last(values: np.ndarray) -> str:
    return f"at the end {values[-1]:.4g}"


def _times(scalars: Mapping[str, Series]) -> Html | None:
    if "time" not in scalars:
        return None
    times = scalars["time"]
    iterations = int(times.iterations[-1]) + 1
    seconds = float(np.median(times.values))
    return tag("p", f"{iterations:,} iterations, {seconds:.3g} s each (median).", class_="note")
