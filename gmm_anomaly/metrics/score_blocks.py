"""Scores put aside in few large blocks, so that they do not cut up the memory between frames."""

from __future__ import annotations

import numpy as np

from gmm_anomaly.metrics.own_pages import own_pages

BLOCK = 1 << 23


class ScoreBlocks:
    """float32 scores in the order they came.

    The blocks lie outside the heap (:func:`own_pages` says why).

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
                self._open = own_pages((self._capacity,), np.float32)
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
