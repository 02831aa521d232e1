"""Time and memory: of the process on a CPU, of finished work and tensors on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch


def clock(device: str) -> Callable[[], float]:
    """Processor time on the CPU, where other processes must not show; on a GPU time with its work done."""
    if not device.startswith("cuda"):
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def memory_now(device: str) -> int:
    """Bytes: of this process (0 where Linux does not tell) or, on a GPU, of its tensors."""
    return torch.cuda.memory_allocated() if device.startswith("cuda") else _resident("VmRSS")


def memory_peak(device: str) -> int:
    """Bytes, at most so far."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else _resident("VmHWM")


def _resident(field: str) -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
