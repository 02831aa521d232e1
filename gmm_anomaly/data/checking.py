"""Whether data sets are on disk, complete and sound, and whether their labels can mean what is asked of them;
the command that prints it."""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from .downloads import Archive, archives_of, download, say
from .pairing import MissingDataError, Record
from .reading import ANOMALY, IGNORE_LABEL, LabelRule, has_label, read_image, read_label
from .registration import load_records, registered_specs

PRESENT = "present"
WRONG_COUNT = "wrong count"
WRONG_LAYOUT = "wrong layout"
MISSING = "missing"
BAD_FILES = "bad files"
BAD_LABELS = "bad labels"
# Labels that are looked at when a training or an evaluation begins.
SAMPLED = 8


@dataclass
class DatasetCheck:
    """What was found of one data set.

    Attributes:
        state: PRESENT, WRONG_COUNT, WRONG_LAYOUT, MISSING or (deep checks) BAD_FILES, BAD_LABELS.
        root: where it was looked for; None for data that need no files.
        expected: frames of the complete data set; None: any number.
        count, labelled: frames found, and how many of them have labels.
        message: what is wrong and what to do; "" if nothing is.
        bad_files: one line for each file that cannot be used (deep checks).
        archives: what it comes in, see ``downloads.Archive``.
    """

    name: str
    state: str
    root: str | None
    expected: int | None
    count: int = 0
    labelled: int = 0
    message: str = ""
    bad_files: list[str] = field(default_factory=list)
    archives: dict[str, Archive] = field(default_factory=dict)


def check_dataset(name: str, *, deep: bool = False) -> DatasetCheck:
    """Check one registered data set.

    Args:
        deep: open every image and label and check the labels' values and sizes; shows a bar on a terminal.
    """
    spec = registered_specs()[name]
    root = None if spec.root is None else str(spec.root.path())
    check = DatasetCheck(name, PRESENT, root, spec.expected_count, archives=archives_of(spec))
    try:
        records = load_records(spec)
    except (OSError, ValueError) as error:
        check.state = MISSING if isinstance(error, MissingDataError) else WRONG_LAYOUT
        check.message = str(error)
        return check
    check.count, check.labelled = len(records), sum(map(has_label, records))
    rule, fault = spec.rule(), ""

    def look(record: Record) -> str | np.ndarray:
        """What is wrong with a frame, or the pixel counts of its label."""
        try:
            size = read_image(record, "RGB").shape[:2]
            return label_counts(record, rule, size) if has_label(record) else np.zeros(256, np.int64)
        except (OSError, ValueError) as error:
            return str(error)

    if deep:
        bar = {"tqdm_class": tqdm, "desc": name, "unit": "frame", "disable": not sys.stderr.isatty()}
        found = thread_map(look, records, **bar)
        check.bad_files = [one for one in found if isinstance(one, str)]
        counts = sum((one for one in found if not isinstance(one, str)), np.zeros(256, np.int64))
        fault = label_fault(counts, spec.evaluator_type, spec.classes) if check.labelled else ""
        absent = [one for value, one in enumerate(spec.classes) if not counts[value]]
        if check.labelled and absent:
            check.message = f"{name}: no label has a pixel of {', '.join(absent)}"
    if check.bad_files:
        check.state = BAD_FILES
        check.message = f"{name}: {len(check.bad_files)} of {len(records)} frames cannot be used"
    elif fault:
        check.state, check.message = BAD_LABELS, f"{name}: of all labels, {fault}"
    elif spec.expected_count not in (None, len(records)):
        check.state = WRONG_COUNT
        check.message = f"{name}: {len(records)} frames in {root}, not {spec.expected_count}. {spec.hint()}"
    return check


def label_counts(record: Record, rule: LabelRule, size: tuple[int, int] | None = None) -> np.ndarray:
    """(256,) int64, pixels of each value of a label as it is read. Errors as ``read_label``."""
    return np.bincount(read_label(record, rule, size=size).ravel(), minlength=256)


def label_fault(counts: np.ndarray, kind: str, classes: Sequence[str] = ()) -> str:
    """What labels cannot mean, to follow "of these labels"; "" if nothing. Masks of 0 and 255 have the form
    of labels, but 255 is ignored.

    Args:
        counts: (256,) pixels of each value. kind: the data set's ``evaluator_type``.
        classes: names of a closed set's.
    """
    ignored, present = counts[IGNORE_LABEL], np.flatnonzero(counts[:IGNORE_LABEL])
    cure = ""
    if ignored:
        cure = (
            f"; {100 * ignored / counts.sum():.3g} % are ignored (255): if 255 stands for something else, "
            "register the data set with label_map={0: 0, 255: 1}, say"
        )
    if not present.size:
        return f"no pixel is labelled{cure}"
    if kind == ANOMALY and not counts[1]:
        return f"no pixel is an anomaly{cure}"
    if kind != ANOMALY and len(present) == 1 < len(classes) and ignored:
        return f"no pixel is of another class than {classes[present[0]]}{cure}"
    return ""


def warn_of_labels(name: str, records: Sequence[Record]) -> None:
    """Look at some labels of a data set, evenly spaced, before work on it begins, and log what they cannot
    mean, once. Only on rank 0. Errors as ``read_label``."""
    labelled = [record for record in records if has_label(record) and "render" not in record]
    if not labelled or not comm.is_main_process():
        return
    metadata = MetadataCatalog.get(name)
    rule = LabelRule.from_metadata(metadata)
    sample = labelled[:: -(-len(labelled) // SAMPLED)]
    counts = np.sum([label_counts(record, rule) for record in sample], axis=0)
    fault = label_fault(counts, metadata.get("evaluator_type", ""), metadata.get("stuff_classes") or ())
    if fault:
        of = f"the {len(sample)} labels looked at" if len(sample) < len(labelled) else "all labels"
        log_first_n(logging.WARNING, f"{name}: of {of}, {fault}", key="message")


def render(checks: Sequence[DatasetCheck]) -> str:
    """The checks as text: a line for each data set, once per place what is wrong and what to do, and the
    files that the sets come in."""
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
        if check.message:
            # Splits of one data set lack the same folder for the same reason.
            advice.setdefault(check.message.removeprefix(f"{check.name}: "), []).append(check.name)
    for reason, names in advice.items():
        lines += ["", f"{', '.join(names)}:", f"  {reason}"]
    archives = {name: one for check in checks for name, one in check.archives.items()}
    if archives:
        lines += ["", "Files, sizes, checksums, licences (*: --download gets it):"]
    for name, one in archives.items():
        size, checksum = one.size or "size unknown", one.checksum or "no checksum is known"
        lines.append(f"  {'*' if one.url else ' '} {name}: {size}; {checksum}; licence: {one.licence}")
    fine = sum(check.state == PRESENT for check in checks)
    return "\n".join([*lines, "", f"{fine} of {len(checks)} data sets are present and complete."])


def run(args: argparse.Namespace) -> int:
    """The verb ``gmm-anomaly datasets``.

    Args:
        args: ``names`` (patterns such as ``camvid*``; none: all, or those of ``download``), ``download``
            (patterns of data sets to get), ``deep``, ``json``.

    Returns:
        0 when all data sets that were asked for are present and complete, 1 when one is not.

    Raises:
        argparse.ArgumentError: a pattern that matches none. Others as ``downloads.download``.
    """
    specs = registered_specs()
    for name in _matching(args.download, specs):
        if check_dataset(name).state == PRESENT:
            say(f"{name} is there")
        else:
            download(specs[name])
    chosen = _matching(args.names or args.download or ["*"], specs)
    checks = [check_dataset(name, deep=args.deep) for name in chosen]
    print(json.dumps([asdict(check) for check in checks], indent=2) if args.json else render(checks))
    return 0 if all(check.state == PRESENT for check in checks) else 1


def _matching(patterns: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names that match, each once."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise argparse.ArgumentError(None, f"no data set matches {pattern!r}; known: {', '.join(known)}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)
