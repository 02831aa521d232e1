"""The verb ``gmm-anomaly report``."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

from .page import render_page
from .run import read_run


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
