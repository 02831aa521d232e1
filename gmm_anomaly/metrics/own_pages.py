"""Arrays in pages of their own, and nothing of them on the heap.

There, between a network's temporaries that come and go, anything that stays leaves holes too small for the
next frame's: kept as plain arrays, the maps of 500 frames of 64 x 128 pixels, 33 MB, cost 0.5 to 2 GB.
"""

from __future__ import annotations

import mmap
from math import prod

import numpy as np
from numpy.typing import DTypeLike


def own_pages(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros; pages that nothing was written to are not resident, all go with the array."""
    size = prod(shape) * np.dtype(dtype).itemsize
    # Private mappings that lie side by side count as one against the system's limit; none can be empty.
    pages = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.ndarray(shape, dtype, pages)
