"""The page: head, contents, the runs side by side, then each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gmm_anomaly

from .anomaly_section import anomaly_section, as_float
from .closed_set_section import closed_set_section
from .comparison_section import comparison_section
from .images_section import overlays, ranked_images
from .markup import Html, breakable, join, number, tag
from .missing import missing
from .mixture_section import mixture_section
from .run_data import Run
from .style import STYLE
from .training_section import training_section

PICTURES = 3
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

# Named sections of a run: id, title, content.
Sections = list[tuple[str, str, Html]]


def render_page(runs: Sequence[Run], *, pictures: int = PICTURES) -> str:
    """One HTML document that needs nothing beside it.

    Args:
        runs: at least one, with different names. pictures: how many of the best and of the worst images of a
            data set are shown.
    """
    if not runs:
        raise ValueError("expected at least one run")
    title = f"Report: {', '.join(run.name for run in runs)}"
    contents: list[Html] = []
    body: list[Html] = []
    if len(runs) > 1:
        contents.append(tag("ul", _link("compared", "Side by side")))
        body.append(tag("section", tag("h2", "Side by side"), comparison_section(runs), id="compared"))
    for place, run in enumerate(runs):
        sections = list(_sections(run, f"run{place}", pictures))
        links = [_link(name, text) for name, text, _ in sections]
        heading = tag("h2", breakable(run.name)) if len(runs) > 1 else None
        contents.append(tag("ul", _link(f"run{place}", run.name) if heading else None, links))
        parts = [
            tag("section", tag("h3", breakable(text)), content, id=name) for name, text, content in sections
        ]
        body.append(tag("section", heading, _head(run), parts, id=f"run{place}"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        # Written here, not read from a run.
        tag("style", Html(STYLE)),
    )
    whole = tag(
        "body",
        tag("header", tag("h1", breakable(title)), tag("nav", contents)),
        tag("main", body),
        tag("footer", f"Made by gmm_anomaly {gmm_anomaly.__version__}, tools/report.py."),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, whole, lang='en')}\n"


def _link(name: str, text: str) -> Html:
    return tag("li", tag("a", text, href=f"#{name}"))


def _head(run: Run) -> Html:
    """Where the run is, what it is, its main results, and what could not be read."""
    shown = [tag("p", str(run.path), class_="note")]
    if run.results:
        evaluated = run.results.get("iteration")
        weights = run.results.get("weights")
        at = f"after {evaluated:,} iterations" if isinstance(evaluated, int) else f"of {weights}"
        shown.append(tag("p", f"Results {at}.", class_="note"))
    shown.append(tag("dl", [*_results(run), *_facts(run)], class_="facts"))
    return join([*shown, *(missing(f"{note}.") for note in run.notes)])


def _results(run: Run) -> Iterator[Html]:
    for dataset, tasks in run.datasets.items():
        if "sem_seg" in tasks:
            value = number(tasks["sem_seg"].get("mIoU"), 2)
            yield _fact(f"mIoU, percent, {dataset}", value, "result")
        for score, numbers in list(tasks.get("anomaly", {}).items())[:1]:
            for metric in ("AP", "FPR95"):
                name = f"{metric} of {score}, {numbers.get('protocol')}, {dataset}"
                yield _fact(name, number(as_float(numbers.get(metric))), "result")


def _facts(run: Run) -> Iterator[Html]:
    for name, key in FACTS.items():
        value: Any = run.setting(key)
        if key == "MODEL.TIMM.NAME" and "timm" not in str(run.setting("MODEL.BACKBONE.NAME")):
            continue
        if value not in (None, "", []):
            yield _fact(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _fact(name: str, value: object, kind: str | None = None) -> Html:
    shown = value if isinstance(value, Html) else breakable(str(value))
    return tag("div", tag("dt", breakable(name)), tag("dd", shown), class_=kind)


def _sections(run: Run, prefix: str, pictures: int) -> Iterator[tuple[str, str, Html]]:
    if not run.results:
        why = "There is no results.json: the run was stopped before its evaluation."
        yield f"{prefix}-results", "Results", missing(why, run.evaluation_command())
    for place, (dataset, tasks) in enumerate(run.datasets.items()):
        name = f"{prefix}-data{place}"
        if tasks.get("anomaly"):
            content = join([anomaly_section(run, dataset), ranked_images(run, dataset, pictures)])
            yield name, f"Anomalies: {dataset}", content
        if "sem_seg" in tasks:
            drawn = overlays(run, dataset, pictures)
            content = join([closed_set_section(run, dataset), drawn and [tag("h4", "First images"), drawn]])
            yield f"{name}-classes", f"Classes: {dataset}", content
    mixtures = mixture_section(run)
    if mixtures is not None:
        yield f"{prefix}-mixtures", "Mixtures", mixtures
    yield f"{prefix}-training", "Training", training_section(run)
    yield f"{prefix}-config", "Configuration", _configuration(run)


def _configuration(run: Run) -> Html:
    versions = run.results.get("versions", {})
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    note = tag("p", f"Evaluated with {used}.", class_="note") if used else None
    if not run.config_text:
        return join([note, missing("There is no config.yaml.")])
    return join([note, tag("details", tag("summary", "config.yaml"), tag("pre", run.config_text))])
