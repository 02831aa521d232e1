"""Keep memory that tensors gave back, instead of returning it to the system after every iteration."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# Numbers of mallopt's parameters in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1
OWN_BLOCKS_FROM = 2**30


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc's heap keep what is freed, and serve blocks of up to 1 GiB from it.

    By default each large activation is a mapping of its own, which the system fills with zeros page by page
    and takes back: half the time of a training iteration of a small network on the CPU. The peak of memory
    is the same, the process only stays at it.

    Changes the whole process, so it is for programs to call, not for libraries.

    Returns:
        Whether anything was changed: not where the C library has no such setting, and not where the
        environment already tunes its heap (``MALLOC_*``, ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT)) and bool(mallopt(M_MMAP_THRESHOLD, OWN_BLOCKS_FROM))
