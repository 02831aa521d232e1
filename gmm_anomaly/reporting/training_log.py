"""Scalars of a training from ``metrics.json``, the lines of JSON that Detectron2 writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POINTS = 240  # of a curve on the page


@dataclass(frozen=True)
class Series:
    """Values of one scalar: (n,) float64 iterations, ascending, and (n,) float64 values."""

    iterations: np.ndarray
    values: np.ndarray

    def thinned(self, points: int = POINTS) -> Series:
        """Means over neighbouring values where there are more than ``points``."""
        if len(self.values) <= points:
            return self
        parts = np.array_split(np.arange(len(self.values)), points)
        return Series(
            *(np.array([array[part].mean() for part in parts]) for array in (self.iterations, self.values))
        )


def read_training_log(path: Path) -> dict[str, Series]:
    """{scalar: its series}.

    A training that was resumed wrote some iterations twice: the later line counts. A last line that was cut
    off when the process was killed is left out.

    Raises:
        ValueError: another line is no JSON object.
    """
    found: dict[str, dict[float, float]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for position, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            iteration = float(entry["iteration"])
        except (ValueError, KeyError, TypeError) as error:
            if position == len(lines):
                break
            raise ValueError(
                f"{path}, line {position}: expected a JSON object with an iteration, as Detectron2 writes "
                f"them, found {line[:60]!r}"
            ) from error
        for key, value in entry.items():
            if key != "iteration" and isinstance(value, (int, float)):
                found.setdefault(key, {})[iteration] = float(value)
    return {
        key: Series(np.array(sorted(values)), np.array([values[at] for at in sorted(values)]))
        for key, values in sorted(found.items())
    }
