"""Scores put aside in few large blocks, so that they do not cut up the memory between frames."""

from __future__ import annotations

import numpy as np

# glibc never takes blocks of 32 MiB from its heap; the pages that nothing was written to are not resident.
BLOCK = 1 << 23


class ScoreBlocks:
    """float32 scores in the order they came.

    An array for each frame, kept while the network's temporaries come and go, leaves the heap with holes too
    small for the next frame's: 500 frames of 64 x 128 pixels then take 2 GB instead of 35 MB.

    Args:
        capacity: scores in a block; at most 2²³ are.
    """

    def __init__(self, capacity: int = BLOCK) -> None:
        self._capacity = max(1, min(capacity, BLOCK))
        self.clear()

    def clear(self) -> None:
        self._full: list[np.ndarray] = []
        self._open = np.empty(0, np.float32)
        self._used = 0

    def append(self, scores: np.ndarray) -> None:
        """scores: (N,), copied."""
        while scores.size:
            if self._used == self._open.size:
                self._close()
                self._open = np.empty(self._capacity, np.float32)
            taken = scores[: self._open.size - self._used]
            self._open[self._used : self._used + taken.size] = taken
            self._used += taken.size
            scores = scores[taken.size :]

    def _close(self) -> None:
        if self._used:
            self._full.append(self._open[: self._used])
        self._open, self._used = np.empty(0, np.float32), 0

    def joined(self) -> np.ndarray:
        """All scores as one array, the one that is kept from then on: sorting it sorts them."""
        parts = [*self._full, self._open[: self._used]]
        parts = [part for part in parts if part.size]
        whole = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
        self.clear()
        self._full = [whole]
        return whole
