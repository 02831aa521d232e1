"""Results of a run for people (tables) and for programs (``results.json``)."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
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
# The metrics of each task.
METRICS = {
    CLOSED_SET: ("mIoU", "fwIoU", "mACC", "pACC", "ECE", "IoU-*", "ACC-*"),
    ANOMALY: ("AP", "AUROC", "FPR95", "best_f1", "best_f1_threshold", "images"),
    COMPONENTS: ("sIoU_gt", "PPV", "F1", "threshold"),
}

# Of a kind of tasks: the table's title, what names a row beside the data set, metrics, and further columns.
_TABLES = {
    CLOSED_SET: (
        "Closed set, percent (IoU as in MMSegmentation, ECE in 15 bins)",
        (), ("mIoU", "fwIoU", "mACC", "pACC", "ECE"), (),
    ),
    ANOMALY: (
        "Anomaly, fractions",
        ("score", "protocol"), ("AP", "AUROC", "FPR95", "best_f1"), ("images",),
    ),
    COMPONENTS: (
        "Components, fractions",
        ("score", "track"), ("sIoU_gt", "PPV", "F1"), ("threshold", "threshold from"),
    ),
}  # fmt: skip
_ROWS_PER_COLUMN = 20
_TEXTS = ("data set", "score", "protocol", "track", "class", "threshold from")  # columns without numbers


class TaskResult(dict[str, float]):
    """{metric: number}, as Detectron2's loggers take it.

    Args:
        numbers: plain floats and integers.
        details: what a logger cannot take: counts by threshold, notes, names.
    """

    def __init__(self, numbers: Mapping[str, float], details: Mapping[str, Any] | None = None) -> None:
        super().__init__(numbers)
        self.details = dict(details or {})


# {data set: {task: {metric: number}}}, as Detectron2 nests what its evaluators return.
Results = Mapping[str, Mapping[str, TaskResult]]


def pixel_task(computed: Mapping[str, Any]) -> TaskResult:
    """Result of ``PixelMetrics.compute()``; intervals become ``<metric>_low`` and ``<metric>_high``."""
    rest = dict(computed)
    numbers = {key: rest.pop(key) for key in METRICS[ANOMALY]}
    for key in [key for key in rest if key.endswith("_interval")]:
        metric = key.removesuffix("_interval")
        numbers[f"{metric}_low"], numbers[f"{metric}_high"] = rest.pop(key)
    return TaskResult(numbers, rest)


def component_task(computed: Mapping[str, Any], track: str) -> TaskResult:
    """Result of ``ComponentMetrics.compute()`` on a track."""
    rest = dict(computed)
    numbers = {key: rest.pop(key) for key in METRICS[COMPONENTS]}
    return TaskResult(numbers, {"track": track} | rest)


def format_results(results: Results) -> str:
    """Tables of what the evaluators found: closed sets, anomaly scores, components; GitHub's markup.

    Args:
        results: {data set: what its evaluator returned}.
    """
    rows: defaultdict[str, list[list[str]]] = defaultdict(list)
    tables = []
    for name, tasks in results.items():
        for task, found in tasks.items():
            kind, *rest = task.split("/", 2)
            digits = 2 if kind == CLOSED_SET else 4
            cells = []
            for key in _TABLES[kind][2]:
                inexact = "~" if f"{key}_low" in found else ""
                cells.append(inexact + _number(found.get(key), digits))
            if kind == ANOMALY:
                cells.append(str(found.get("images", "")))
            if kind == COMPONENTS:
                threshold = f"{found.get('threshold', math.nan):.6g}"
                cells += [threshold, found.details.get("threshold_from", "")]
            rows[kind].append([name, *rest[::-1], *cells])
            if kind == CLOSED_SET:
                tables.append(_class_table(name, found))
    for kind, (title, given, columns, more) in _TABLES.items():
        table = _table(title, ["data set", *given, *columns, *more], rows[kind])
        if " ~" in table:
            table += "\n~ certified interval in results.json (<metric>_low, <metric>_high)"
        tables.insert(0 if kind == CLOSED_SET else len(tables), table)
    return "\n\n".join(filter(None, tables))


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
    versions = {"gmm_anomaly": gmm_anomaly.__version__, "python": platform.python_version()}
    for module in ("torch", "numpy", "cv2", "detectron2"):
        versions[module] = str(getattr(import_module(module), "__version__", "unknown"))
    datasets: dict[str, Any] = {}
    for name, tasks in results.items():
        nested = datasets[name] = {}
        for task, result in tasks.items():
            kind, *rest = task.split("/", 2)
            content = {**result, **result.details}
            if rest:
                rule, score = rest
                rule_name = "protocol" if kind == ANOMALY else "track"
                nested.setdefault(kind, {})[score] = {rule_name: rule} | content
            else:
                nested[task] = content
    return {**context, "datasets": datasets, "units": UNITS, "versions": versions}


def _class_table(name: str, numbers: Mapping[str, float]) -> str:
    classes = [key.removeprefix("IoU-") for key in numbers if key.startswith("IoU-")]
    rows = [
        [key, _number(numbers.get(f"IoU-{key}"), 2), _number(numbers.get(f"ACC-{key}"), 2)] for key in classes
    ]
    # Many classes stand side by side, read column by column.
    height = min(len(rows), _ROWS_PER_COLUMN)
    blocks = -(-len(rows) // _ROWS_PER_COLUMN)
    rows += [["", "", ""]] * (height * blocks - len(rows))
    joined = [sum(rows[line::height], []) for line in range(height)]
    return _table(f"Classes of {name}, percent", ["class", "IoU", "ACC"] * blocks, joined)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    alignment = ["left" if header in _TEXTS else "right" for header in headers]
    text = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=alignment)
    return f"{title}\n{text}"
