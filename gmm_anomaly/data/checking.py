"""Whether data sets are on disk, complete and sound; the command that prints it."""

from __future__ import annotations

import argparse
import fnmatch
import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from .pairing import MissingDataError, Record, has_label
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
        count, labelled: frames found, and how many of them have labels.
        message: what is wrong and what to do; "" if nothing is.
        bad_files: one line for each file that cannot be used (deep checks).
    """

    name: str
    state: str
    root: str | None
    expected: int | None
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
    check = DatasetCheck(name, PRESENT, root, spec.expected_count)
    try:
        records = load_records(spec)
    except (OSError, ValueError) as error:
        check.state = MISSING if isinstance(error, MissingDataError) else WRONG_LAYOUT
        check.message = str(error)
        return check
    check.count, check.labelled = len(records), sum(map(has_label, records))
    rule = spec.rule()

    def problem(record: Record) -> str:
        try:
            size = read_image(record, "RGB").shape[:2]
            if has_label(record):
                read_label(record, rule, size=size)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    if deep:
        bar = {"tqdm_class": tqdm, "desc": name, "unit": "frame", "disable": not sys.stderr.isatty()}
        check.bad_files = list(filter(None, thread_map(problem, records, **bar)))
    if check.bad_files:
        check.state = BAD_FILES
        check.message = f"{name}: {len(check.bad_files)} of {len(records)} frames cannot be used"
    elif spec.expected_count not in (None, len(records)):
        check.state = WRONG_COUNT
        check.message = f"{name}: {len(records)} frames in {root}, not {spec.expected_count}. {spec.hint()}"
    return check


def render(checks: Sequence[DatasetCheck]) -> str:
    """The checks as text: a line for each data set, then once per place what is wrong and what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    advice: dict[str, list[str]] = {}
    for check in checks:
        total = f" of {check.expected}" if check.state == WRONG_COUNT else ""
        frames = f"{check.count}{total} frames" if check.count else ""
        if check.count != check.labelled:
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


def run(args: argparse.Namespace) -> int:
    """The verb ``gmm-anomaly datasets``.

    Args:
        args: ``names`` (patterns such as ``camvid*``; none: all), ``deep``, ``json``, and ``register``
            (Python files that register data sets).

    Returns:
        0 when all data sets that were asked for are present and complete, 1 when one is not.

    Raises:
        argparse.ArgumentError: a pattern that matches none, or a file to run that is not there.
    """
    try:
        for path in args.register:
            runpy.run_path(str(path))
    except (ValueError, OSError) as error:
        raise argparse.ArgumentError(None, str(error)) from error
    known, chosen = list(registered_specs()), []
    for pattern in args.names or ["*"]:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise argparse.ArgumentError(None, f"no data set matches {pattern!r}; known: {', '.join(known)}")
        chosen += [name for name in matching if name not in chosen]
    checks = [check_dataset(name, deep=args.deep) for name in chosen]
    print(json.dumps([asdict(check) for check in checks], indent=2) if args.json else render(checks))
    return 0 if all(check.state == PRESENT for check in checks) else 1
