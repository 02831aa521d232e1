"""Timing functions side by side with ``torch.utils.benchmark``, and saying how far the times spread."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as waiting_for_gpu

Seconds = dict[str, list[float]]


def clock(device: str) -> Callable[[], float]:
    """Processor time on the CPU, where other processes must not show; on a GPU time with its work done."""
    return time.process_time if device == "cpu" else waiting_for_gpu


def side_by_side(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    runs: int = 1,
) -> Seconds:
    """Seconds that a call takes in each round, run in turns so that a busy machine slows all of them alike.

    Args:
        functions: what to time, by name. Each is called twice before a round, to warm up.
        repeats: rounds. runs: calls in a round; their mean counts.
    """
    timers = {
        name: Timer("function()", globals={"function": function}, timer=clock(device), num_threads=threads)
        for name, function in functions.items()
    }
    rounds = [{name: one.timeit(runs).mean for name, one in timers.items()} for _ in range(repeats)]
    return {name: [one[name] for one in rounds] for name in functions}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "shortest": min(values), "longest": max(values)}


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times longer ``slow`` took: median, smallest and largest of the rounds."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def report(
    title: str, seconds: Seconds, ratios: Mapping[str, tuple[str, str, str]], images: int = 0
) -> dict[str, Any]:
    """Print times and ratios as a table.

    Args:
        ratios: by name, the two functions and what is wanted of their ratio (may be empty).
        images: that a call takes; 0: no images a second.

    Returns:
        ``seconds`` and ``ratios`` as they were printed.
    """
    print(title)
    found: dict[str, Any] = {"seconds": {name: summary(values) for name, values in seconds.items()}}
    for name, times in found["seconds"].items():
        spread = f"({1e3 * times['shortest']:.1f} to {1e3 * times['longest']:.1f})"
        speed = f"{images / times['median']:9.2f} images/s" if images else ""
        print(f"  {name:24s} {1e3 * times['median']:10.1f} ms  {spread:22s}{speed}")
    found["ratios"] = {name: ratio(seconds[a], seconds[b]) for name, (a, b, _) in ratios.items()}
    for name, times in found["ratios"].items():
        wanted = f", {ratios[name][2]} wanted" if ratios[name][2] else ""
        spread = f"({times['shortest']:.3f} to {times['longest']:.3f})"
        print(f"  {name:24s} {times['median']:10.3f}     {spread}{wanted}")
    return found


def environment() -> dict[str, Any]:
    """Machine and versions that a measurement belongs to."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"system": platform.platform(), "torch": torch.__version__, "cpus": os.cpu_count(), **gpu}


def memory_now(device: str) -> int:
    """Bytes: of this process (0 where Linux does not tell) or, on a GPU, of its tensors."""
    return _resident("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()


def memory_peak(device: str) -> int:
    """Bytes, at most so far."""
    return _resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _resident(field: str) -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
