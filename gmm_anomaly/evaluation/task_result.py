"""What one evaluation task found: numbers for loggers, and everything else for reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Tasks of anomaly data sets are named "<kind>/<rule>/<score>": the rule stands beside every number, whether a
# logger joins the names with slashes (TensorBoard), prints tasks (Detectron2's "copypaste" lines) or a table
# is made.
ANOMALY = "anomaly"
COMPONENTS = "components"
CLOSED_SET = "sem_seg"

UNITS = {
    ANOMALY: "fraction",
    COMPONENTS: "fraction",
    CLOSED_SET: "percent",
}


class TaskResult(dict[str, float]):
    """{metric: number}, as Detectron2's loggers take it.

    Args:
        numbers: plain floats and integers.
        details: what a logger cannot take: counts by threshold, notes, names.
    """

    def __init__(self, numbers: Mapping[str, float], details: Mapping[str, Any] | None = None) -> None:
        super().__init__(numbers)
        self.details = dict(details or {})


def task_name(kind: str, rule: str, score: str) -> str:
    return f"{kind}/{rule}/{score}"


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
