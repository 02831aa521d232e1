"""Whether data sets are on disk, complete and sound; the command that prints it."""

from __future__ import annotations

import argparse
import fnmatch
import json
import runpy
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from .pairing import MissingDataError, Record
from .reading import read_image, read_label
from .registration import load_records, registered_specs

PRESENT = "present"
WRONG_COUNT = "wrong count"
WRONG_LAYOUT = "wrong layout"
MISSING = "missing"
BAD_FILES = "bad files"


@dataclass
class DatasetCheck:
    """What was found of one data set.

    Attributes:
        state: PRESENT, WRONG_COUNT, WRONG_LAYOUT, MISSING or (deep checks) BAD_FILES.
        root: where it was looked for; None for data that need no files.
        expected: frames of the complete data set; None: any number.
        hint: what to download and where to put it.
        count, labelled: frames found, and how many of them have labels.
        message: what is wrong and what to do; "" if nothing is.
        bad_files: one line for each file that cannot be used (deep checks).
    """

    name: str
    state: str
    root: str | None
    expected: int | None
    hint: str
    count: int = 0
    labelled: int = 0
    message: str = ""
    bad_files: list[str] = field(default_factory=list)


def check_dataset(name: str, *, deep: bool = False) -> DatasetCheck:
    """Check one registered data set.

    Args:
        deep: open every image and label and check the labels' values and sizes; shows a bar on a terminal.
    """
    spec = registered_specs()[name]
    root = None if spec.root is None else str(spec.root.path())
    check = DatasetCheck(name, PRESENT, root, spec.expected_count, spec.hint())
    try:
        records = load_records(spec, warn=False)
    except (OSError, ValueError) as error:
        check.state = MISSING if isinstance(error, MissingDataError) else WRONG_LAYOUT
        check.message = str(error)
        return check
    check.count = len(records)
    check.labelled = sum("sem_seg_file_name" in record or "render" in record for record in records)
    rule = spec.rule()

    def problem(record: Record) -> str:
        try:
            size = read_image(record, "RGB").shape[:2]
            if "sem_seg_file_name" in record or "render" in record:
                read_label(record, rule, size=size)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    if deep:
        found = thread_map(
            problem, records, tqdm_class=tqdm, desc=name, unit="frame", disable=not sys.stderr.isatty()
        )
        check.bad_files = [text for text in found if text]
    if check.bad_files:
        check.state = BAD_FILES
        check.message = f"{name}: {len(check.bad_files)} of {len(records)} frames cannot be used"
    elif spec.expected_count not in (None, len(records)):
        check.state = WRONG_COUNT
        check.message = f"{name}: {len(records)} frames in {root}, not {spec.expected_count}. {check.hint}"
    return check


def chosen_names(patterns: Sequence[str]) -> list[str]:
    """Registered names that match any of the patterns (``camvid*``), all without patterns.

    Raises:
        ValueError: a pattern that matches none.
    """
    known = list(registered_specs())
    chosen: list[str] = []
    for pattern in patterns or ["*"]:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise ValueError(f"no data set matches {pattern!r}; known: {', '.join(known)}")
        chosen += [name for name in matching if name not in chosen]
    return chosen


def render(checks: Iterable[DatasetCheck]) -> str:
    """The checks as text: a line for each data set, then once per place what is wrong and what to do."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    lines = []
    advice: dict[str, list[str]] = {}
    for check in checks:
        frames = f"{check.count} frames" if check.count else ""
        if check.state == WRONG_COUNT:
            frames = f"{check.count} of {check.expected} frames"
        if check.count and check.labelled != check.count:
            frames += f", {check.labelled} with labels"
        lines.append(f"{check.name:<{width}}  {check.state:<12}  {frames}".rstrip())
        lines += [f"  {text}" for text in check.bad_files]
        if check.state != PRESENT:
            # Splits of one data set lack the same folder for the same reason.
            advice.setdefault(check.message.removeprefix(f"{check.name}: "), []).append(check.name)
    for reason, names in advice.items():
        lines += ["", f"{', '.join(names)}:", f"  {reason}"]
    fine = sum(check.state == PRESENT for check in checks)
    return "\n".join([*lines, "", f"{fine} of {len(checks)} data sets are present and complete."])


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all data sets that were asked for are present and complete, 1 when one is not, 2 for a bad
    argument."""
    parser = argparse.ArgumentParser(
        description="Say for each data set whether it is there, what to download and where to put it.",
        epilog="Exit status: 0 if all that were asked for are there and complete, 1 if not, 2: bad argument.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="data sets, or patterns such as 'camvid*'; none: all"
    )
    parser.add_argument(
        "--deep", action="store_true", help="open every file, and check label values and sizes"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )
    options = parser.parse_args(arguments)
    try:
        for path in options.register:
            runpy.run_path(path)
        names = chosen_names(options.names)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    checks = [check_dataset(name, deep=options.deep) for name in names]
    print(json.dumps([asdict(check) for check in checks], indent=2) if options.json else render(checks))
    return 0 if all(check.state == PRESENT for check in checks) else 1
