"""States of all metrics, saved and read back by NumPy, JSON and torch: nothing is lost, counting goes on."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from gmm_anomaly.metrics import (
    PROTOCOLS,
    CalibrationMetrics,
    ComponentMetrics,
    ConfusionMetrics,
    PixelMetrics,
)

MADE = {
    f"{protocol}, {precision}, {limit}": (PixelMetrics, (protocol, precision), {"max_distinct": limit})
    for protocol in PROTOCOLS
    for precision in ("float32", "float16")
    for limit in (50, 2**25)
} | {
    "components": (ComponentMetrics, (3, 2, 0.5), {}),
    "confusion": (ConfusionMetrics, (2,), {}),
    "confusion, named": (ConfusionMetrics, (2, ["road", "car"]), {}),
    "calibration": (CalibrationMetrics, (), {}),
}


def by_numpy(state: dict) -> dict:
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def by_json(state: dict) -> dict:
    return json.loads(
        json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in state.items()})
    )


def by_torch(state: dict) -> dict:
    file = io.BytesIO()
    torch.save({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def count(metrics, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 255], (20, 30), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    score = (rng.normal(size=label.shape) + (label == 1)).astype(np.float32)
    score[0, :2] = np.inf, -np.inf
    if isinstance(metrics, ConfusionMetrics):
        metrics.update((score > 1).astype(int), label)
    elif isinstance(metrics, CalibrationMetrics):
        metrics.update(1 / (1 + np.exp(-score)), pred=(score > 1).astype(int), label=label)
    else:
        metrics.update(score, label)


def as_bytes(metrics) -> dict[str, tuple]:
    arrays = {key: np.asarray(value) for key, value in metrics.state().items()}
    return {key: (value.dtype, value.shape, value.tobytes()) for key, value in arrays.items()}


@pytest.mark.parametrize("frames", [0, 1])
@pytest.mark.parametrize("saved", [by_numpy, by_json, by_torch])
@pytest.mark.parametrize("name", MADE)
def test_a_saved_state_is_read_back_and_counted_on(name, saved, frames):
    kind, arguments, options = MADE[name]
    kept, other = kind(*arguments, **options), kind(*arguments, **options)
    for frame in range(frames):
        count(kept, frame)
    count(other, 7)
    back = kind.from_state(saved(kept.state()))
    assert as_bytes(back) == as_bytes(kept)
    for metrics in (back, kept):
        count(metrics, 8)
        metrics.merge(other)
    assert as_bytes(back) == as_bytes(kept)
    assert str(back.compute()) == str(kept.compute())
