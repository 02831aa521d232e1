"""Scales of a chart: round ticks, their texts, and positions on the drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or above ``low`` to at or below ``high``: multiples of 1, 2 or 5 times 10^n."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's number in few characters: 0.25, 20, 1.5k, 2e-05."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e+0", "e").replace("e-0", "e-")
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.6g}"


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] onto [start, end] of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        span = self.high - self.low
        return self.start + (np.asarray(values, np.float64) - self.low) * ((self.end - self.start) / span)


def limits(values: np.ndarray, *, from_zero: bool = False) -> tuple[float, float]:
    """A range with a little room around the finite values; (0, 1) without any."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if from_zero and low >= 0:
        low = 0.0
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return (0.0, high + room) if from_zero and high >= 0 else (low - room, high + room)
    room = 0.05 * (high - low)
    return (low if from_zero and low == 0 else low - room), high + room
