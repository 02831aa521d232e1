"""Timing functions side by side, and saying how far the times spread."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds that one run took: median, shortest and longest of the repeats."""

    median: float
    shortest: float
    longest: float


def side_by_side(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds each function takes, run in turns so that a busy machine slows all of them alike.

    Args:
        functions: what to time, by name.
        repeats: rounds that count; one more runs before them.
        clock: ``time.process_time`` gives this process's processor time instead: for work on one core, the
            time it takes where nothing else runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def summary(seconds: list[float]) -> Timing:
    return Timing(median(seconds), min(seconds), max(seconds))


def ratio(slow: list[float], fast: list[float]) -> Timing:
    """How many times longer ``slow`` took: median, smallest and largest of the rounds."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def environment(modules: list[Any]) -> dict[str, Any]:
    """Machine and versions that a measurement belongs to."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        **{module.__name__: module.__version__ for module in modules},
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` to ``path`` in one step: an interrupted run leaves no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
