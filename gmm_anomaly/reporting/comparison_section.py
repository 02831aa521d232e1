"""Several runs side by side: their numbers, curves and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .anomaly_section import COMPONENT_METRICS, LABELS, METRICS, as_float, matching_curves, metric_cell
from .closed_set_section import METRICS as CLOSED_METRICS
from .markup import Html, join, number, tag
from .run_data import Run
from .svg_curves import Line, line_chart
from .tables import table

LOWER_IS_BETTER = ("FPR95", "ECE")
# Where a run was made says nothing about how.
PLACES = ("OUTPUT_DIR", "MODEL.WEIGHTS")

# Data set, score ("" for closed sets), rule, metric.
Key = tuple[str, str, str, str]


def comparison_section(runs: Sequence[Run]) -> Html:
    """The numbers of all runs, a table a data set, curves of their first scores, settings that differ."""
    names = short_names([run.name for run in runs])
    return join(
        [
            _numbers(runs, names),
            _curves(runs, names),
            tag("h3", "Settings that differ"),
            _settings(runs, names),
        ]
    )


def short_names(names: Sequence[str]) -> list[str]:
    """What tells the names apart: without the parts, between underscores, that all begin and end with."""
    parts = [name.split("_") for name in names]
    shortest = min(map(len, parts)) - 1
    start = next((at for at in range(shortest) if len({own[at] for own in parts}) > 1), shortest)
    left = shortest - start
    end = next((at for at in range(left) if len({own[-1 - at] for own in parts}) > 1), left)
    return ["_".join(own[start : len(own) - end]) for own in parts]


def _numbers(runs: Sequence[Run], shown: Sequence[str]) -> Html:
    found: dict[Key, dict[int, Html]] = {}
    values: dict[Key, dict[int, float]] = {}
    for column, run in enumerate(runs):
        for key, value, cell in _all_numbers(run):
            found.setdefault(key, {})[column] = cell
            if value is not None and np.isfinite(value):
                values.setdefault(key, {})[column] = value
    # Closed sets have neither score nor protocol.
    tables: dict[tuple[str, bool], list[list[object]]] = {}
    before: tuple[str, ...] = ()
    for key in sorted(found, key=_order(runs)):
        best = _best(key[3], values.get(key, {}))
        dataset, score, rule, metric = key
        cells = [
            tag("b", found[key][column], class_="best") if column in best else found[key].get(column, "")
            for column, run in enumerate(runs)
            if dataset in run.datasets
        ]
        labels = [tag("span", text, class_="same" if key[:3] == before else None) for text in (score, rule)]
        before = key[:3]
        row = [*(labels if score else ()), LABELS.get(metric, metric), *cells]
        tables.setdefault((dataset, bool(score)), []).append(row)
    caption = (
        "Bold: the best run of a row with several numbers. Closed-set numbers are percent, others fractions."
    )
    parts = []
    for (dataset, scored), rows in tables.items():
        names = [name for name, run in zip(shown, runs, strict=True) if dataset in run.datasets]
        first = ["score", "protocol", "metric"] if scored else ["metric"]
        parts += [tag("h3", dataset), table([*first, *names], rows, names=len(first))]
    meant = [
        join([tag("b", short), f" is {run.name}. "])
        for short, run in zip(shown, runs, strict=True)
        if short != run.name
    ]
    return join([tag("p", meant, caption, class_="note"), parts])


def _all_numbers(run: Run) -> Iterator[tuple[Key, float | None, Html]]:
    for dataset, tasks in run.datasets.items():
        closed = tasks.get("sem_seg", {})
        for metric in CLOSED_METRICS:
            if metric in closed:
                yield (dataset, "", "closed set", metric), closed[metric], number(closed[metric], 2)
        for kind, rule, metrics in (
            ("anomaly", "protocol", METRICS),
            ("components", "track", COMPONENT_METRICS),
        ):
            for score, numbers in tasks.get(kind, {}).items():
                for metric in metrics:
                    value = as_float(numbers.get(metric))
                    yield (
                        (dataset, score, str(numbers.get(rule, "")), metric),
                        value,
                        metric_cell(numbers, metric),
                    )


def _order(runs: Sequence[Run]) -> Any:
    """Sorts rows as the first run that has them."""
    places: dict[Key, int] = {}
    for run in runs:
        for key, _, _ in _all_numbers(run):
            places.setdefault(key, len(places))
    datasets = list(dict.fromkeys(key[0] for key in places))
    return lambda key: (datasets.index(key[0]), places[key])


def _best(metric: str, values: Mapping[int, float]) -> set[int]:
    if len(set(values.values())) < 2:
        return set()
    best = (min if metric in LOWER_IS_BETTER else max)(values.values())
    return {column for column, value in values.items() if value == best}


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Html | None:
    charts = []
    for dataset in dict.fromkeys(name for run in runs for name in run.anomaly_sets):
        precision, receiver = [], []
        for short, run in zip(names, runs, strict=True):
            curves = matching_curves(run, dataset)
            if not curves:
                continue
            score, found = next(iter(curves.items()))
            recall, exactness, fpr = (
                np.array(found["curve"][key], float) for key in ("recall", "precision", "fpr")
            )
            name = f"{short}, {score}"
            precision.append(
                Line(name, recall, exactness, f"AP {found['AP']:.4f}" if found["AP"] is not None else "")
            )
            receiver.append(Line(name, fpr, recall))
        if len(precision) > 1:
            unit = (0.0, 1.0)
            charts.append(
                line_chart(
                    f"{dataset}: precision and recall", precision, x_label="recall", y_label="precision",
                    x_range=unit, y_range=unit,
                )
            )  # fmt: skip
            charts.append(
                line_chart(
                    f"{dataset}: ROC", receiver, x_label="false positive rate", y_label="true positive rate",
                    x_range=unit, y_range=unit, guide=0.95,
                )
            )  # fmt: skip
    return tag("div", charts, class_="charts") if charts else None


def _settings(runs: Sequence[Run], names: Sequence[str]) -> Html:
    flat = [dict(_flattened(run.config)) for run in runs]
    if not any(flat):
        return tag("p", "No run has a config.yaml.", class_="note")
    keys = sorted({key for one in flat for key in one if key not in PLACES})
    rows = [
        [key, *(_shown(one.get(key, "")) for one in flat)]
        for key in keys
        if len({repr(one.get(key)) for one in flat}) > 1
    ]
    if not rows:
        return tag("p", "None.", class_="note")
    return tag("div", table(["key", *names], rows), class_="settings")


def _flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
