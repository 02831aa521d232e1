"""One self-contained HTML page of one or several runs (tools/report.py, ``gmm-anomaly report``).

Exit status: 0; 1 after an error; 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .page import PICTURES, render_page
from .run_data import read_run


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of a run of train_net.py; several "
        "stand side by side",
    )  # fmt: skip
    arguments.add_argument(
        "--out", type=Path, metavar="FILE",
        help="the page; default: report.html in the run's folder, or in the current one for several runs",
    )  # fmt: skip
    arguments.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="K",
        help=f"so many of the best and of the worst images of a data set ({PICTURES})",
    )  # fmt: skip
    arguments.add_argument("--json", action="store_true", help="print what was written as JSON")
    return arguments


def names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    shown = [own[-1:] for own in parts]
    while True:
        repeated = {name for name, count in Counter(shown).items() if count > 1}
        longer = [
            own[-len(name) - 1 :] if name in repeated else name
            for own, name in zip(parts, shown, strict=True)
        ]
        if longer == shown:
            return [os.path.join(*name) for name in shown]
        shown = longer


def write(target: Path, page: str) -> None:
    """Complete or not at all."""
    # data.atomic does this too, but its package loads Detectron2, which takes longer than all the rest.
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.pictures < 0:
        arguments.error(f"--pictures must be at least 0, found {args.pictures}")
    folders = [folder.resolve() for folder in args.runs]
    repeated = [str(folder) for folder, count in Counter(folders).items() if count > 1]
    if repeated:
        arguments.error(f"given more than once: {', '.join(repeated)}")
    target = args.out or (args.runs[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    try:
        runs = [read_run(folder, name) for folder, name in zip(args.runs, names(folders), strict=True)]
        page = render_page(runs, pictures=args.pictures)
        write(target, page)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = target.stat().st_size
    if args.json:
        print(
            json.dumps(
                {"page": str(target), "bytes": size, "runs": {run.name: str(run.path) for run in runs}}
            )
        )
    else:
        print(f"{target}: {size / 1e6:.1f} MB")
    return 0
