"""Freed memory stays with the process, counted in page faults; a heap that is tuned already is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gmm_anomaly.compat import keep_freed_memory

MEGABYTES, ROUNDS = 64, 20
PROGRAM = f"""
import resource, sys
import torch
from gmm_anomaly.compat import keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else None)
def touch():
    torch.ones({MEGABYTES * 2**18}, dtype=torch.float32)
# Small blocks that stay take pieces of the first ones.
for _ in range({ROUNDS}):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> tuple[str, int]:
    """What the function said, and the page faults of twenty tensors that are made and freed."""
    tuned = ("MALLOC_", "GLIBC_TUNABLES")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    said, faults = subprocess.run(
        command, env=plain, capture_output=True, text=True, check=True
    ).stdout.split()
    return said, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_tensors_reuse_the_pages_of_those_before() -> None:
    _, anew = page_faults()
    said, kept = page_faults("keep")
    if said == "False":
        pytest.skip("the C library has no mallopt")
    # Each tensor's pages, of 4 kB or of up to 2 MB where the system uses huge ones.
    assert anew >= ROUNDS * MEGABYTES // 2
    assert kept < anew / 10


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_a_heap_that_is_tuned_already_is_left_alone(name: str) -> None:
    assert keep_freed_memory({name: "1"}) is False
