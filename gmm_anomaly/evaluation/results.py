"""Results of a run for people (tables) and for programs (``results.json``)."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tabulate import tabulate

import gmm_anomaly

from .files import save_json

RESULTS_FILE = "results.json"

# Tasks of anomaly data sets are named "<kind>/<rule>/<score>": the rule stands beside every number, whether a
# logger joins the names with slashes (TensorBoard), prints tasks (Detectron2's "copypaste" lines) or a table
# is made.
ANOMALY, COMPONENTS, CLOSED_SET = "anomaly", "components", "sem_seg"
UNITS = {ANOMALY: "fraction", COMPONENTS: "fraction", CLOSED_SET: "percent"}

# {data set: {task: {metric: number}}}, as Detectron2 nests what its evaluators return.
Results = Mapping[str, Mapping[str, Mapping[str, float]]]

_ROWS_PER_COLUMN = 20


class TaskResult(dict[str, float]):
    """{metric: number}, as Detectron2's loggers take it.

    Args:
        numbers: plain floats and integers.
        details: what a logger cannot take: counts by threshold, notes, names.
    """

    def __init__(self, numbers: Mapping[str, float], details: Mapping[str, Any] | None = None) -> None:
        super().__init__(numbers)
        self.details = dict(details or {})


def pixel_task(computed: Mapping[str, Any]) -> TaskResult:
    """Result of ``PixelMetrics.compute()``; intervals become ``<metric>_low`` and ``<metric>_high``."""
    rest = dict(computed)
    numbers = {
        key: rest.pop(key) for key in ("AP", "AUROC", "FPR95", "best_f1", "best_f1_threshold", "images")
    }
    for key in [key for key in rest if key.endswith("_interval")]:
        metric = key.removesuffix("_interval")
        numbers[f"{metric}_low"], numbers[f"{metric}_high"] = rest.pop(key)
    return TaskResult(numbers, rest)


def component_task(computed: Mapping[str, Any], track: str) -> TaskResult:
    """Result of ``ComponentMetrics.compute()`` on a track."""
    rest = dict(computed)
    numbers = {key: rest.pop(key) for key in ("sIoU_gt", "PPV", "F1", "threshold")}
    return TaskResult(numbers, {"track": track} | rest)


def format_results(results: Results) -> str:
    """Tables of what the evaluators found: closed sets, anomaly scores, components; GitHub's markup.

    Args:
        results: {data set: what its evaluator returned}.
    """
    tables = [_closed_set_table(results)]
    tables += [
        _class_table(name, tasks[CLOSED_SET]) for name, tasks in results.items() if CLOSED_SET in tasks
    ]
    tables += [_anomaly_table(results), _component_table(results)]
    return "\n\n".join(table for table in tables if table)


def write_results(results: Results, output_dir: str | Path, **context: Any) -> Path:
    """Write ``output_dir/results.json``, complete or not at all.

    {**context, "datasets": {data set: {"sem_seg": {metric: number}, "anomaly": {score: {"protocol": …,
    metric: number}}, "components": {score: {"track": …, metric: number}}}}, "units", "versions"}. NaN becomes
    null, infinities "inf" and "-inf".

    Args:
        results: {data set: what its evaluator returned}.
        context: what the numbers belong to: ``iteration``, ``weights``, ``config``, ….

    Returns:
        The path of the file.
    """
    target = Path(output_dir) / RESULTS_FILE
    save_json(target, results_document(results, **context))
    return target


def results_document(results: Results, **context: Any) -> dict[str, Any]:
    """The content of ``results.json`` (see :func:`write_results`) before NaN and infinities are replaced."""
    return {
        **context,
        "datasets": {name: _nested(tasks) for name, tasks in results.items()},
        "units": UNITS,
        "versions": _versions(),
    }


def _nested(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for task, result in tasks.items():
        details = _details(result)
        kind, *rest = task.split("/", 2)
        if kind in (ANOMALY, COMPONENTS) and len(rest) == 2:
            rule, score = rest
            rule_name = "protocol" if kind == ANOMALY else "track"
            nested.setdefault(kind, {})[score] = {rule_name: rule, **result, **details}
        else:
            nested[task] = {**result, **details}
    return nested


def _details(result: Mapping[str, float]) -> Mapping[str, Any]:
    return result.details if isinstance(result, TaskResult) else {}


def _versions() -> dict[str, str]:
    versions = {"gmm_anomaly": gmm_anomaly.__version__, "python": platform.python_version()}
    for module in ("torch", "numpy", "cv2", "detectron2"):
        versions[module] = str(getattr(import_module(module), "__version__", "unknown"))
    return versions


def _closed_set_table(results: Results) -> str:
    columns = ("mIoU", "fwIoU", "mACC", "pACC", "ECE")
    rows = [
        [name, *(_percent(tasks[CLOSED_SET].get(column)) for column in columns)]
        for name, tasks in results.items()
        if CLOSED_SET in tasks
    ]
    return _table(
        "Closed set, percent (IoU as in MMSegmentation, ECE in 15 bins)", ["data set", *columns], rows
    )


def _class_table(name: str, numbers: Mapping[str, float]) -> str:
    classes = [key.removeprefix("IoU-") for key in numbers if key.startswith("IoU-")]
    rows = [[key, _percent(numbers[f"IoU-{key}"]), _percent(numbers.get(f"ACC-{key}"))] for key in classes]
    # Many classes stand side by side, read column by column.
    blocks = [rows[start : start + _ROWS_PER_COLUMN] for start in range(0, len(rows), _ROWS_PER_COLUMN)]
    height = max(map(len, blocks), default=0)
    padded = [block + [["", "", ""]] * (height - len(block)) for block in blocks]
    joined = [sum((block[line] for block in padded), []) for line in range(height)]
    return _table(f"Classes of {name}, percent", ["class", "IoU", "ACC"] * len(blocks), joined)


def _anomaly_table(results: Results) -> str:
    columns = ("AP", "AUROC", "FPR95", "best_f1")
    rows, inexact = [], False
    for name, protocol, score, result in _by_score(results, ANOMALY):
        cells = [_fraction(result, column) for column in columns]
        inexact |= any(cell.startswith("~") for cell in cells)
        images = result.get("images")
        rows.append([name, score, protocol, *cells, "" if images is None else f"{images:.0f}"])
    table = _table("Anomaly, fractions", ["data set", "score", "protocol", *columns, "images"], rows)
    return table + ("\n~ certified interval in results.json (<metric>_low, <metric>_high)" if inexact else "")


def _component_table(results: Results) -> str:
    columns = ("sIoU_gt", "PPV", "F1")
    rows = []
    for name, track, score, result in _by_score(results, COMPONENTS):
        cells = [_fraction(result, column) for column in columns]
        threshold = f"{result.get('threshold', math.nan):.6g}"
        rows.append([name, score, track, *cells, threshold, _details(result).get("threshold_from", "")])
    headers = ["data set", "score", "track", *columns, "threshold", "threshold from"]
    return _table("Components, fractions", headers, rows)


def _by_score(results: Results, kind: str) -> list[tuple[str, str, str, Mapping[str, float]]]:
    found = []
    for name, tasks in results.items():
        for task, result in tasks.items():
            if task.startswith(f"{kind}/"):
                _, rule, score = task.split("/", 2)
                found.append((name, rule, score, result))
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _fraction(result: Mapping[str, float], key: str) -> str:
    value = result.get(key, math.nan)
    if math.isnan(value):
        return "-"
    return f"{'~' if f'{key}_low' in result else ''}{value:.4f}"


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    right = [index for index, cell in enumerate(rows[0]) if _looks_numeric(cell)]
    alignment = ["right" if index in right else "left" for index in range(len(headers))]
    text = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=alignment)
    return f"{title}\n{text}"


def _looks_numeric(cell: str) -> bool:
    try:
        float(cell.removeprefix("~"))
    except ValueError:
        return cell == "-"
    return True
