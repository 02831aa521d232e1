"""Score maps kept compactly between the pixel metrics and what needs their result."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path

import numpy as np

from gmm_anomaly.metrics.score_counts import own_pages

DEFAULT_BUDGET = 2 * 2**30


class KeptScores:
    """Arrays by key: in memory up to a budget, beyond it in a temporary folder that :meth:`clear` removes.

    The folder also goes when the object is collected or the interpreter ends.

    Args:
        budget: bytes kept in memory.
        folder: where the temporary folder is made, by default where the system has its own; a full data set
            of large frames can take many gigabytes.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET, folder: str | Path | None = None) -> None:
        self.budget, self._parent = budget, folder
        self._in_memory: dict[Hashable, np.ndarray] = {}
        self._on_disk: dict[Hashable, Path] = {}
        self._bytes = self._written = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._in_memory) + len(self._on_disk)

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Keep a copy of ``array``. Raises ValueError if there is one under ``key``."""
        if key in self._in_memory or key in self._on_disk:
            raise ValueError(f"scores of {key} are kept already")
        if self._bytes + array.nbytes <= self.budget:
            kept = self._in_memory[key] = own_pages(array.shape, array.dtype)
            kept[...] = array
            self._bytes += array.nbytes
            return
        if self._folder is None:
            if self._parent is not None:
                Path(self._parent).mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="kept_scores_", dir=self._parent)
        path = Path(self._folder.name) / f"{self._written}.npy"
        self._written += 1
        np.save(path, array, allow_pickle=False)
        self._on_disk[key] = path

    def get(self, key: Hashable) -> np.ndarray:
        """The array under ``key``; raises KeyError if there is none."""
        if key in self._in_memory:
            return self._in_memory[key]
        return np.load(self._on_disk[key], allow_pickle=False)

    def drop(self, key: Hashable) -> None:
        """Forget the array under ``key``; raises KeyError if there is none."""
        if key in self._in_memory:
            self._bytes -= self._in_memory.pop(key).nbytes
        else:
            self._on_disk.pop(key).unlink()

    def clear(self) -> None:
        """Forget everything and remove the temporary folder."""
        self._in_memory.clear()
        self._on_disk.clear()
        self._bytes = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
