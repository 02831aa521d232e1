"""Anomaly scores on one data set: numbers with their protocol, curves, histograms, components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gmm_anomaly.metrics import PROTOCOLS

from .markup import Html, join, number, significant, tag
from .missing import missing
from .run_data import Run
from .svg_curves import Line, histogram_chart, line_chart
from .tables import bar, table

METRICS = ("AP", "AUROC", "FPR95", "best_f1")
COMPONENT_METRICS = ("sIoU_gt", "PPV", "F1")
LABELS = {"best_f1": "best F1", "sIoU_gt": "sIoU"}


def anomaly_section(run: Run, dataset: str) -> Html:
    """Everything about the scores on a data set that holds for all its images."""
    scores = run.anomaly_sets[dataset]
    parts = [_numbers(scores)]
    curves = matching_curves(run, dataset)
    if curves:
        parts.append(tag("div", _curve_charts(curves, scores), class_="charts"))
        parts.append(tag("h4", "Scores of known and of anomalous pixels"))
        parts.append(tag("div", _histograms(curves, scores), class_="charts"))
    else:
        other = dataset in run.curves
        why = (
            f"curves/{dataset}.json belongs to another evaluation than results.json: no curves are shown."
            if other
            else f"There is no curves/{dataset}.json: no curves, histograms and images by their AP."
        )
        parts.append(missing(why, run.evaluation_command()))
    parts.append(_components(run, dataset, curves))
    return join(parts)


def matching_curves(run: Run, dataset: str) -> Mapping[str, Mapping[str, Any]]:
    """{score: curves} of the evaluation whose results are shown; empty if the file is of another one."""
    curves = run.curves.get(dataset, {}).get("scores", {})
    results = run.anomaly_sets.get(dataset, {})
    for score, found in curves.items():
        shown, drawn = (source.get("AP") for source in (results.get(score, {}), found))
        if (shown is None) != (drawn is None) or (
            shown is not None and not np.isclose(shown, drawn, rtol=1e-6, atol=0)
        ):
            return {}
    return curves


def metric_cell(numbers: Mapping[str, Any], metric: str) -> Html:
    """A fraction; with ~ where the true value lies in a certified interval, which is its title."""
    low, high = (numbers.get(f"{metric}_{end}") for end in ("low", "high"))
    value = number(as_float(numbers.get(metric)))
    if low is None or high is None:
        return value
    return tag("span", "~", value, title=f"between {low} and {high}")


def as_float(value: Any) -> float | None:
    """A number of ``results.json``, where infinities are strings and NaN is null."""
    return None if value is None else float(value)


def _numbers(scores: Mapping[str, Mapping[str, Any]]) -> Html:
    rows, inexact = [], False
    for score, numbers in scores.items():
        cells: list[object] = [metric_cell(numbers, metric) for metric in METRICS]
        cells[0] = bar(as_float(numbers.get("AP")), metric_cell(numbers, "AP"))
        inexact |= "AP_low" in numbers
        threshold = significant(as_float(numbers.get("best_f1_threshold")))
        rows.append([score, numbers.get("protocol", ""), *cells, threshold])
    first = next(iter(scores.values()))
    used = sorted({str(numbers.get("protocol", "")) for numbers in scores.values()})
    notes = [f"Protocol {name}: {PROTOCOLS[name]}." for name in used if name in PROTOCOLS]
    counts = [
        ("images", "images"),
        ("anomaly_pixels", "anomalous"),
        ("known_pixels", "known"),
        ("void_pixels", "void"),
    ]
    counted = [f"{int(first[key]):,} {text}" for key, text in counts if first.get(key) is not None]
    notes.append(", ".join(counted).replace(" anomalous", " anomalous pixels", 1) + ".")
    if inexact:
        notes.append("~ is a number known within a certified interval.")
    notes += sorted({str(numbers["note"]) for numbers in scores.values() if numbers.get("note")})
    headers = [
        "score",
        "protocol",
        *(LABELS.get(metric, metric) for metric in METRICS),
        "threshold of best F1",
    ]
    return table(headers, rows, names=2, caption=" ".join(notes))


def _curve_charts(curves: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Html]:
    precision, receiver = [], []
    for score, found in curves.items():
        numbers = scores.get(score, {})
        recall, exactness, fpr = (_array(found["curve"][key]) for key in ("recall", "precision", "fpr"))
        precision.append(Line(score, recall, exactness, _note("AP", numbers)))
        receiver.append(Line(score, fpr, recall, _note("AUROC", numbers)))
    unit = (0.0, 1.0)
    return [
        line_chart(
            "Precision and recall", precision, x_label="recall", y_label="precision", x_range=unit,
            y_range=unit,
        ),
        line_chart(
            "ROC; dotted: 95 % of the anomalous pixels", receiver, x_label="false positive rate",
            y_label="true positive rate", x_range=unit, y_range=unit, guide=0.95,
        ),
    ]  # fmt: skip


def _note(metric: str, numbers: Mapping[str, Any]) -> str:
    value = as_float(numbers.get(metric))
    return "" if value is None else f"{metric} {value:.4f}"


def _histograms(curves: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Html]:
    charts = []
    for score, found in curves.items():
        bins = found["histogram"]
        if not bins["known"]:
            charts.append(missing(f"{score}: no pixel has a finite score."))
            continue
        threshold = as_float(scores.get(score, {}).get("best_f1_threshold"))
        charts.append(
            histogram_chart(
                score,
                _array(bins["edges"]),
                [(label, _array(bins[label])) for label in ("known", "anomalous")],
                x_label="score, higher is more anomalous",
                marker=None if threshold is None else ("best F1 at", threshold),
            )
        )
    return charts


def _components(run: Run, dataset: str, curves: Mapping[str, Any]) -> Html:
    title = tag("h4", "Components")
    found = run.datasets[dataset].get("components")
    if not found:
        command = run.evaluation_command("TEST.COMPONENT_TRACK", "anomaly")
        return join(
            [
                title,
                missing(
                    "The data set was evaluated without component metrics (TEST.COMPONENT_TRACK).", command
                ),
            ]
        )
    rows = [
        [
            score,
            numbers.get("track", ""),
            *(number(as_float(numbers.get(metric))) for metric in COMPONENT_METRICS),
            significant(as_float(numbers.get("threshold"))),
            numbers.get("threshold_from", ""),
        ]
        for score, numbers in found.items()
    ]
    headers = [
        "score",
        "track",
        *(LABELS.get(m, m) for m in COMPONENT_METRICS),
        "threshold",
        "threshold from",
    ]
    first = next(iter(found.values()))
    caption = (
        "SegmentMeIfYouCan's component metrics; F1 is the mean over sIoU thresholds from 0.25 to 0.75. "
        f"Anomalies of at least {first.get('min_anomaly_size')} pixels, predictions of at least "
        f"{first.get('min_prediction_size')}."
    )
    parts = [title, table(headers, rows, names=2, caption=caption)]
    by_threshold = [
        Line(score, _array(numbers["f1"]), _array(numbers["f1"].values()))
        for score, numbers in found.items()
        if numbers.get("f1")
    ]
    if by_threshold:
        chart = line_chart(
            "F1 by the sIoU that counts as found", by_threshold, x_label="sIoU threshold", y_label="F1",
            from_zero=True,
        )  # fmt: skip
        parts.append(tag("div", chart, class_="charts"))
    sized = {
        score: data["components_by_size"] for score, data in curves.items() if data.get("components_by_size")
    }
    parts += [_size_table(score, rows) for score, rows in sized.items()][:1]
    if len(sized) > 1:
        others = [_size_table(score, rows) for score, rows in list(sized.items())[1:]]
        parts.append(tag("details", tag("summary", "By size, other scores"), others))
    return join(parts)


def _size_table(score: str, rows: list[Mapping[str, Any]]) -> Html:
    body = []
    for row in rows:
        size = f"{row['from']:,} to {row['to'] - 1:,}" if row["to"] else f"{row['from']:,} and more"
        anomalies = int(row["anomalies"])
        share = row["found"] / anomalies if anomalies else None
        found = tag("span", f"{row['found']} of {anomalies}")
        body.append(
            [
                size,
                anomalies,
                number(row["sIoU_gt"]),
                bar(share, found),
                row["predictions"],
                number(row["PPV"]),
            ]
        )
    caption = (
        "Sizes are of the anomaly in the ground truth for sIoU, of the prediction for PPV; found: sIoU ≥ 0.5."
    )
    headers = [f"{score}: pixels", "anomalies", "mean sIoU", "found", "predictions", "mean PPV"]
    return table(headers, body, caption=caption)


def _array(values: Any) -> np.ndarray:
    """Numbers of a JSON list; null becomes NaN."""
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)
