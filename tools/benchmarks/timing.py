"""Timing functions side by side with ``torch.utils.benchmark``, and saying how far the times spread."""

from __future__ import annotations

import os
import platform
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as waiting_for_gpu

Seconds = dict[str, list[float]]


def clock(device: str) -> Callable[[], float]:
    """Processor time on the CPU, where other processes must not show; on a GPU time with its work done."""
    return time.process_time if device == "cpu" else waiting_for_gpu


def side_by_side(functions: Mapping[str, Callable[[], object]], args: Namespace, runs: int = 1) -> Seconds:
    """Seconds that a call takes in each round, run in turns so that a busy machine slows all of them alike.

    Args:
        functions: what to time, by name. Each is called twice before a round, to warm up.
        args: ``repeats`` (rounds), ``device``, ``threads``.
        runs: calls in a round; their mean counts.
    """
    now = clock(args.device)
    timers = {
        name: Timer("function()", globals={"function": function}, timer=now, num_threads=args.threads)
        for name, function in functions.items()
    }
    rounds = [{name: one.timeit(runs).mean for name, one in timers.items()} for _ in range(args.repeats)]
    return {name: [one[name] for one in rounds] for name in functions}


def report(
    title: str, seconds: Seconds, ratios: Mapping[tuple[str, str], str], images: int = 0
) -> dict[str, Any]:
    """Print times and ratios as a table.

    Args:
        ratios: of two functions, with what is wanted of it (may be empty); taken round by round.
        images: that a call takes; 0: no images a second.

    Returns:
        ``seconds`` and ``ratios`` ("a / b"), each with the ``median`` of the rounds, the ``least`` and the
        ``most``.
    """
    measured = {name: [1e3 * value for value in values] for name, values in seconds.items()}
    divided = {f"{a} / {b}": [x / y for x, y in zip(seconds[a], seconds[b], strict=True)] for a, b in ratios}
    wanted = {f"{a} / {b}": text for (a, b), text in ratios.items()}
    rows = []
    for name, values in (measured | divided).items():
        speed = f"{1e3 * images / median(values):.2f}" if images and name in measured else ""
        rows.append([name, median(values), min(values), max(values), speed, wanted.get(name, "")])
    headers = [title, "ms or ratio", "least", "most", "images/s", "wanted"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".4g"), end="\n\n")

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": median(values), "least": min(values), "most": max(values)}

    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratios": {name: spread(values) for name, values in divided.items()},
    }


def environment() -> dict[str, Any]:
    """Machine and versions that a measurement belongs to."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"system": platform.platform(), "torch": torch.__version__, "cpus": os.cpu_count(), **gpu}


def memory(device: str, *, peak: bool = False) -> int:
    """Bytes, now or at most so far: of this process (Linux) or, on a GPU, of its tensors."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
