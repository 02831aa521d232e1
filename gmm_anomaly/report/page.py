"""The verb ``gmm-anomaly report``: one HTML page, what ``page.html.j2`` shows of each run and of several side
by side."""

from __future__ import annotations

import json
import math
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import gmm_anomaly
from gmm_anomaly.metrics import PROTOCOLS

from .charts import score_charts
from .run import Run, as_text, read_run
from .sections import view

METRICS = {
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "ECE"),
    "anomaly": ("AP", "AUROC", "FPR95", "best_f1"),
    "components": ("sIoU_gt", "PPV", "F1"),
}
LOWER_IS_BETTER = ("FPR95", "ECE")
# Where a run was made says nothing about how.
PLACES = ("OUTPUT_DIR", "MODEL.WEIGHTS")


def run(args: Namespace) -> None:
    """Write the page of ``args.runs`` to ``args.out``, or by default to report.html: in the run's folder, or
    in the current one for several runs.

    Raises:
        ValueError: bad arguments, or a file of a run that is not what its name says.
        FileNotFoundError: a folder that no run left.
    """
    if args.pictures < 0:
        raise ValueError(f"--pictures: expected 0 or more, found {args.pictures}")
    folders = [folder.resolve() for folder in args.runs]
    if len(set(folders)) < len(folders):
        raise ValueError(f"RUN_DIR: expected each run once, found {', '.join(map(str, folders))}")
    # Several runs are called by as many parents as tell them apart.
    common = os.path.commonpath([folder.parent for folder in folders])
    runs = [read_run(folder, os.path.relpath(folder, common)) for folder in folders]
    target = args.out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    page = render_page(runs, pictures=args.pictures)
    target.parent.mkdir(parents=True, exist_ok=True)
    # data.atomic does this too, but its package loads Detectron2, which takes longer than all the rest.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # A file name on the page may hold bytes that are no UTF-8.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    size = target.stat().st_size
    if args.json:
        said = {"page": str(target), "bytes": size, "runs": {run.name: str(run.path) for run in runs}}
        print(json.dumps(said))
    else:
        print(f"{target}: {size / 1e6:.1f} MB")
        for found in (one for one in runs if one.results):
            print(f"{found.name}: results of {found.results.get('weights') or 'weights that were not saved'}")


def render_page(runs: Sequence[Run], *, pictures: int = 3) -> str:
    """One HTML document that needs nothing beside it.

    Args:
        runs: at least one, with different names. pictures: how many of the best and of the worst images of a
            data set are shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"number": number, "breakable": breakable, "metric": metric}
    page = environment.get_template("page.html.j2").render(
        title=f"Report: {', '.join(run.name for run in runs)}",
        compared=comparison(runs) if len(runs) > 1 else None,
        views=[view(run, f"run{place}", pictures) for place, run in enumerate(runs)],
        METRICS=METRICS,
        PROTOCOLS=PROTOCOLS,
        version=gmm_anomaly.__version__,
    )
    return page.strip() + "\n"


def number(value: Any, form: str = ".4f") -> Markup:
    """A number as people read it, with all its digits for programs in a ``data`` element.

    Args:
        value: as in ``results.json``, where NaN is null and infinities are strings. form: its format.
    """
    found = math.nan if value is None else float(value)
    if not math.isfinite(found):
        return Markup('<span class="none">{}</span>').format("-" if math.isnan(found) else found)
    return Markup('<data value="{}">{}</data>').format(found, f"{found:{form}}")


def metric(numbers: Mapping[str, Any], name: str) -> Markup:
    """A metric of a score; with ~ where the true value lies in a certified interval, which is its title."""
    low, high = (numbers.get(f"{name}_{end}") for end in ("low", "high"))
    value = number(numbers.get(name), ".2f" if name in METRICS["sem_seg"] else ".4f")
    if low is None or high is None:
        return value
    return Markup('<span title="between {} and {}">~{}</span>').format(low, high, value)


def breakable(text: str) -> Markup:
    """A long name that may go on in the next line after an underscore or slash, and before a capital letter
    within it."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])|(?<=[a-z0-9]{2})(?=[A-Z])", str(text)))


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """A table a data set, with a row a metric and a column a run, curves of the runs' first scores, and the
    settings in which they differ."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for dataset, tasks in run.datasets.items():
            for kind, names in METRICS.items():
                found = tasks.get(kind)
                if not found:
                    continue
                for score, numbers in ({"": found} if kind == "sem_seg" else found).items():
                    rule = str(numbers.get("protocol", numbers.get("track", "")))
                    table = tables.setdefault((dataset, kind == "sem_seg"), {"runs": [], "rows": {}})
                    table["runs"] += [] if run.name in table["runs"] else [run.name]
                    for name in names:
                        if name in numbers:
                            table["rows"].setdefault((score, rule, name), {})[run.name] = numbers
    for table in tables.values():
        table["best"] = {key: _best(key[2], cells) for key, cells in table["rows"].items()}
    charts = []
    for dataset in dict.fromkeys(name for run in runs for name in run.curves):
        firsts = {}
        for run in runs:
            for score, drawn in list(run.curves.get(dataset, {}).get("scores", {}).items())[:1]:
                firsts[f"{run.name}, {score}"] = (drawn, run.datasets[dataset]["anomaly"].get(score, {}))
        if len(firsts) > 1:
            charts += score_charts(firsts, f"{dataset}: ")
    keys = sorted({key for run in runs for key in run.settings} - set(PLACES))
    rows = [(key, [as_text(run.settings.get(key, "")) for run in runs]) for key in keys]
    settings = [(key, values) for key, values in rows if len(set(values)) > 1]
    names = [run.name for run in runs]
    return {"tables": tables, "charts": charts, "settings": settings, "names": names, "configs": bool(keys)}


def _best(name: str, cells: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The runs with the best number; none where all are equal."""
    values = {run: float(cell[name]) for run, cell in cells.items() if cell[name] is not None}
    if len(set(values.values())) < 2:
        return set()
    best = (min if name in LOWER_IS_BETTER else max)(values.values())
    return {run for run, value in values.items() if value == best}
