"""What the page shows of one run, in the order of its sections."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gmm_anomaly.visualization import SEPARATOR, caption_bar

from .charts import Chart, Line, histogram_chart, line_charts, score_charts, training_charts
from .run import Run, as_text

PANEL_WIDTH = 512
# What a reader asks first about a run.
FACTS = {
    "model": "MODEL.META_ARCHITECTURE",
    "backbone": "MODEL.BACKBONE.NAME",
    "timm model": "MODEL.TIMM.NAME",
    "decoder": "MODEL.DECODER.NAME",
    "classifier": "MODEL.CLASSIFIER.NAME",
    "trained on": "DATASETS.TRAIN",
    "iterations": "SOLVER.MAX_ITER",
    "images per batch": "SOLVER.IMS_PER_BATCH",
    "learning rate": "SOLVER.BASE_LR",
    "seed": "SEED",
}
# Of the scalars of a training: those drawn with the mixtures, and those of no use as curves.
MIXTURE_PREFIXES = ("gmm/", "health/")
TIMES = ("data_time", "rank_data_time", "eta_seconds", "time")


def view(run: Run, prefix: str, pictures: int) -> dict[str, Any]:
    """A run as the template shows it; ids of its parts start with ``prefix``."""
    sections = []
    for place, (dataset, tasks) in enumerate(run.datasets.items()):
        parts = {"id": f"{prefix}-data{place}", "dataset": dataset, **tasks}
        if tasks.get("anomaly"):
            title = f"Anomalies: {dataset}"
            sections.append(parts | {"kind": "anomaly", "title": title} | _anomalies(run, dataset, pictures))
        if "sem_seg" in tasks:
            parts |= {"kind": "classes", "title": f"Classes: {dataset}", "id": f"{parts['id']}-classes"}
            sections.append(parts | _classes(run, dataset, pictures))
    mixture_charts, charts = _training(run)
    if run.mixtures or mixture_charts or run.settings.get("MODEL.CLASSIFIER.NAME") == "gmm":
        known = [found["sem_seg"].get("class_names") for found in run.datasets.values() if "sem_seg" in found]
        count = len(run.mixtures)
        known = [names for names in known if len(names or []) == count]
        names = known[0] if known and count else [f"class {index}" for index in range(count)]
        classes = list(zip(names, run.mixtures, strict=True))
        mixtures = {"kind": "mixtures", "title": "Mixtures", "classes": classes, "charts": mixture_charts}
        sections.append(mixtures | {"id": f"{prefix}-mixtures"})
    times = run.scalars.get("time")
    training = {"kind": "training", "title": "Training", "charts": charts, "times": None}
    if times is not None:
        training["times"] = (int(times[-1, 0]) + 1, float(np.median(times[:, 1])))
    sections.append(training | {"id": f"{prefix}-training"})
    sections.append({"kind": "config", "title": "Configuration", "id": f"{prefix}-config"})
    return {"run": run, "id": prefix, "facts": list(facts(run)), "sections": sections}


def facts(run: Run) -> Iterator[tuple[str, Any, str]]:
    """Name, value and kind: "result" for a number."""
    for dataset, tasks in run.datasets.items():
        if "sem_seg" in tasks:
            yield f"mIoU, percent, {dataset}", tasks["sem_seg"].get("mIoU"), "result"
        for score, numbers in list(tasks.get("anomaly", {}).items())[:1]:
            for name in ("AP", "FPR95"):
                text = f"{name} of {score}, {numbers.get('protocol')}, {dataset}"
                yield text, numbers.get(name), "result"
    for name, key in FACTS.items():
        value = run.settings.get(key)
        other = key == "MODEL.TIMM.NAME" and "timm" not in str(run.settings.get("MODEL.BACKBONE.NAME"))
        if value not in (None, "", []) and not other:
            yield name, as_text(value), ""


def _anomalies(run: Run, dataset: str, pictures: int) -> dict[str, Any]:
    scores = run.datasets[dataset]["anomaly"]
    curves = run.curves.get(dataset, {}).get("scores", {})
    frames = run.curves.get(dataset, {}).get("frames", {})
    known = {name: ap for name, ap in frames.get("AP", {}).items() if ap is not None}
    order = sorted(known, key=lambda name: -known[name])
    files = run.pictures(dataset)
    drawn = [name for name in order if name in files]
    half = (len(drawn) + 1) // 2
    best, worst = drawn[: min(half, pictures)], drawn[half:][::-1][:pictures]

    def frame(name: str) -> tuple[Any, ...]:
        # Which of the slider's thresholds a pixel reaches lies beside the file that says what they are.
        levels = run.path / "curves" / dataset / f"{name}.png"
        uri = _uri("png", levels.read_bytes()) if levels.is_file() else ""
        return name, known[name], order.index(name) + 1, _panels(files[name]), uri

    titles = {"Best": best, "Worst": worst}
    ranked = [(title, [*map(frame, names)]) for title, names in titles.items() if names]
    by_overlap = [
        Line(score, map(float, found["f1"]), found["f1"].values())
        for score, found in (run.datasets[dataset].get("components") or {}).items()
        if found.get("f1")
    ]
    by_image = [Line(frames["score"], range(1, len(order) + 1), map(known.get, order))] if order else []
    titles = "F1 by the sIoU that counts as found", f"AP of single images, best first ({frames.get('score')})"
    return {
        "curves": score_charts({score: (found, scores.get(score, {})) for score, found in curves.items()}),
        "histograms": [
            histogram_chart(score, found["histogram"], scores.get(score, {}).get("best_f1_threshold"))
            for score, found in curves.items()
            if found["histogram"]["known"]
        ],
        "component_charts": line_charts(titles[0], by_overlap, "sIoU threshold", "F1"),
        "sizes": {score: found.get("components_by_size") for score, found in curves.items()},
        "image_charts": line_charts(titles[1], by_image, "image", "AP"),
        "inexact": any(key.endswith("_low") for numbers in scores.values() for key in numbers),
        "without_ap": len(frames.get("AP", {})) - len(known),
        "images": len(order),
        "ranked": ranked,
        "ranked_by": frames.get("score"),
        "overlays": [] if order else _overlays(files, pictures),
        "steps": frames.get("steps"),
        "start": scores.get(frames.get("score"), {}).get("best_f1_threshold"),
    }


def _classes(run: Run, dataset: str, pictures: int) -> dict[str, Any]:
    numbers = run.datasets[dataset]["sem_seg"]
    names = [key.removeprefix("IoU-") for key in numbers if key.startswith("IoU-")]
    curve, lines = numbers.get("reliability_curve"), []
    if curve:
        note = "" if numbers.get("ECE") is None else f"ECE {numbers['ECE']:.2f} %"
        lines = [
            Line("model", curve["confidence"], curve["accuracy"], note),
            Line("perfectly calibrated", (0, 1), (0, 1)),
        ]
    charts = line_charts("Reliability", lines, "confidence", "accuracy", unit=True)
    return {"names": names, "charts": charts, "overlays": _overlays(run.pictures(dataset), pictures)}


def _training(run: Run) -> tuple[list[Chart], list[Chart]]:
    """Charts of the mixtures and of all else: losses, learning rate, results where there are several."""
    datasets = tuple(f"{name}/" for name in (*run.datasets, *(run.settings.get("DATASETS.TEST") or ())))
    losses, others, mixtures = {}, {}, {}
    for key, values in run.scalars.items():
        if key.startswith(MIXTURE_PREFIXES):
            # Those that differ by class stand in one chart.
            package, name, *classes = key.split("/", 2)
            title = f"{package}/{name}{' by class' if classes else ''}"
            mixtures.setdefault(title, {})[classes[0] if classes else key] = values
        elif key.startswith(datasets or "\n"):
            if len(values) > 1 and key.endswith(("/mIoU", "/AP", "/F1")):
                others[key] = {key: values}
        elif "loss" in key:
            losses[key] = values
        elif key not in TIMES:
            others[key] = {key: values}
    losses = dict(sorted(losses.items(), key=lambda item: item[0] != "total_loss"))
    groups = {"Losses": losses} | others
    return training_charts(dict(sorted(mixtures.items()))), training_charts(groups)


def _overlays(files: Mapping[str, Path], count: int) -> list[tuple[str, list[str]]]:
    return [(name, _panels(path)) for name, path in list(files.items())[:count]]


def _panels(path: Path) -> list[str]:
    """The panels of an overlay as data URIs of small JPEGs without captions; none of a file that is no
    picture."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        return []
    width = (picture.shape[1] - 2 * SEPARATOR) // 3
    top = len(caption_bar("", width))
    uris = []
    for start in range(0, picture.shape[1], width + SEPARATOR):
        panel = picture[top:, start : start + width]
        if width > PANEL_WIDTH:
            height = max(1, round(panel.shape[0] * PANEL_WIDTH / width))
            panel = cv2.resize(panel, (PANEL_WIDTH, height), interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", panel, [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
        uris.append(_uri("jpeg", jpeg.tobytes()))
    return uris


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
