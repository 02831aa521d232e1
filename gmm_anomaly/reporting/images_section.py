"""The best and the worst images of a data set by their own AP, and other overlays that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .anomaly_section import matching_curves
from .markup import Html, join, number, tag
from .missing import missing
from .pictures import panel_uris
from .run_data import Run
from .svg_curves import Line, line_chart


def ranked_images(run: Run, dataset: str, count: int) -> Html:
    """AP of all images, and overlays of ``count`` where it is highest and as many where it is lowest."""
    matching = matching_curves(run, dataset)
    frames: Mapping[str, Any] = run.curves[dataset].get("frames", {}) if matching else {}
    known = {name: found for name, found in frames.get("AP", {}).items() if found is not None}
    order = sorted(known, key=lambda name: -known[name])
    if not order:
        shown = overlays(run, dataset, count)
        if shown:
            return shown
        return missing("No overlay of this data set was drawn.", run.evaluation_command())
    score = frames["score"]
    values = np.array([known[name] for name in order])
    chart = line_chart(
        f"AP of single images, best first ({score})",
        [Line(score, np.arange(1, len(order) + 1), values)],
        x_label="image",
        y_label="AP",
        y_range=(0.0, 1.0),
    )
    best = [name for name in order if run.picture(dataset, name)][:count]
    worst = [name for name in reversed(order) if run.picture(dataset, name) and name not in best][:count]
    parts: list[object] = [tag("div", chart, class_="charts")]
    if len(known) < len(frames["AP"]):
        others = len(frames["AP"]) - len(known)
        parts.append(
            tag("p", f"{others} images without anomalous or without known pixels have no AP.", class_="note")
        )
    for title, names in ((f"Best images by AP of {score}", best), (f"Worst images by AP of {score}", worst)):
        if names:
            parts += [
                tag("h4", title),
                [_figure(run, dataset, name, known[name], order.index(name), order) for name in names],
            ]
    if not best:
        command = run.evaluation_command("TEST.NUM_BEST_WORST", str(count))
        parts.append(missing("No overlay of the best and worst images was drawn.", command))
    return join(parts)


def overlays(run: Run, dataset: str, count: int) -> Html | None:
    """The first ``count`` overlays by name; None if there is none."""
    files = run.pictures(dataset)[:count]
    if not files:
        return None
    return join([_pictures(path, path.stem, tag("span", path.stem)) for path in files])


def _figure(run: Run, dataset: str, name: str, found: float, rank: int, order: Sequence[str]) -> Html:
    path = run.picture(dataset, name)
    assert path is not None
    text = tag("span", tag("b", name), " AP ", number(found), f", place {rank + 1} of {len(order)}")
    return _pictures(path, name, text)


def _pictures(path: Path, name: str, caption: Html) -> Html:
    try:
        uris = panel_uris(path)
    except ValueError as error:
        return missing(f"{error}.")
    kinds = ("image", "ground truth", "model") if len(uris) > 1 else ("overlay",)
    images = [
        tag("img", src=uri, alt=f"{name}: {kind}", loading="lazy")
        for uri, kind in zip(uris, kinds, strict=True)
    ]
    return tag("figure", tag("figcaption", caption), tag("div", images, class_="panels"), class_="images")
