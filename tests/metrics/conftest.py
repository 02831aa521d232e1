"""Frames that the tests of all metrics count, and what they counted, to be compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gmm_anomaly.metrics import ComponentMetrics, PixelMetrics
from gmm_anomaly.metrics.base import Metric

Frame = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def frames() -> Callable[..., list[Frame]]:
    return make_frames


def make_frames(count: int = 7, seed: int = 0) -> list[Frame]:
    """Scores with ties, zeros of both signs and infinities; labels with all three values."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        label = rng.choice([0, 1, 255], (24, 31), p=[0.8, 0.1, 0.1]).astype(np.uint8)
        score = (rng.normal(size=label.shape) + (label == 1)).astype(np.float32)
        score = np.where(rng.random(label.shape) < 0.4, np.round(score * 2) / 2, score)
        score.flat[rng.integers(score.size, size=12)] = np.repeat([0.0, -0.0, np.inf, -np.inf], 3)
        made.append((score.astype(np.float32), label))
    return made


@pytest.fixture(scope="session")
def as_bytes() -> Callable[[Metric], dict[str, tuple]]:
    """All that metrics have counted, as what can be compared to the last bit."""

    def converted(metrics: Metric) -> dict[str, tuple]:
        found = metrics.settings() | {name: getattr(metrics, name) for name in metrics.COUNTS}
        if isinstance(metrics, PixelMetrics):
            found |= vars(metrics.counts())
        if isinstance(metrics, ComponentMetrics):
            found |= dict(zip("abcd", metrics._shares(), strict=True))
        arrays = {key: np.asarray(value) for key, value in found.items()}
        return {key: (value.dtype, value.shape, value.tolist()) for key, value in arrays.items()}

    return converted
