"""Closed-set segmentation on one data set: means, the table of classes, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .markup import Html, join, number, tag
from .run_data import Run
from .svg_curves import Line, line_chart
from .tables import bar, table

METRICS = ("mIoU", "fwIoU", "mACC", "pACC", "ECE")


def closed_set_section(run: Run, dataset: str) -> Html:
    """The numbers in percent, class by class, and the reliability curve."""
    numbers = run.datasets[dataset]["sem_seg"]
    means = table(METRICS, [[number(numbers.get(metric), 2) for metric in METRICS]], names=0)
    names = [key.removeprefix("IoU-") for key in numbers if key.startswith("IoU-")]
    rows = [
        [
            name,
            bar(_share(numbers[f"IoU-{name}"]), number(numbers[f"IoU-{name}"], 2)),
            number(numbers.get(f"ACC-{name}"), 2),
        ]
        for name in names
    ]
    classes = table(["class", "IoU", "ACC"], rows, caption=_caption(numbers))
    reliability = numbers.get("reliability_curve")
    chart = _reliability(reliability, numbers.get("ECE")) if reliability else None
    return join([means, tag("div", classes, chart, class_="columns")])


def _caption(numbers: Mapping[str, Any]) -> str:
    convention = numbers.get("convention")
    rule = f" by the convention of {convention}" if convention else ""
    counted = f" {int(numbers['images']):,} images," if numbers.get("images") is not None else ""
    pixels = f" {int(numbers['pixels']):,} pixels." if numbers.get("pixels") is not None else ""
    return f"Percent{rule}; ECE in 15 bins.{counted}{pixels}"


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _reliability(curve: Mapping[str, Any], error: float | None) -> Html:
    confidence, accuracy = (
        np.array([np.nan if value is None else value for value in curve[key]], np.float64)
        for key in ("confidence", "accuracy")
    )
    seen = np.isfinite(confidence)
    unit = np.array([0.0, 1.0])
    note = "" if error is None else f"ECE {error:.2f} %"
    lines = [Line("model", confidence[seen], accuracy[seen], note), Line("perfectly calibrated", unit, unit)]
    return line_chart(
        "Reliability", lines, x_label="confidence", y_label="accuracy", x_range=(0.0, 1.0), y_range=(0.0, 1.0)
    )
