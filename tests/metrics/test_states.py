"""All metrics: the same counts for any order and shards, and pickled for other processes without loss."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from gmm_anomaly.metrics import (
    CalibrationMetrics,
    ComponentMetrics,
    ConfusionMetrics,
    PixelMetrics,
)

# 100 different scores is far fewer than the frames have, 100 000 far more than they have pixels.
PIXELS = [("pooled", precision, limit) for precision in ("float32", None) for limit in (100, 2000, 100_000)]
PIXELS += [("per_image", "float32", 100)]
PIXELS += [(protocol, "float16", 2**16) for protocol in ("pooled", "per_image", "smiyc")]
PIXELS += [(protocol, "float32", 2**16) for protocol in ("smiyc", "smiyc_uniform")]
MADE = {
    f"{protocol}, {precision}, {limit}": (PixelMetrics, (protocol, precision), {"max_distinct": limit})
    for protocol, precision, limit in PIXELS
} | {
    "components": (ComponentMetrics, (3, 2, 0.5), {}),
    "confusion": (ConfusionMetrics, (2,), {}),
    "confusion, named": (ConfusionMetrics, (2, ["road", "car"]), {}),
    "calibration": (CalibrationMetrics, (), {}),
}


def fill(name: str, data: list, metrics=None):
    """The metrics ``name``, or the given ones, with the frames counted."""
    kind, arguments, options = MADE[name]
    metrics = kind(*arguments, **options) if metrics is None else metrics
    for score, label in data:
        if kind is ConfusionMetrics:
            metrics.update((score > 1).astype(int), label)
        elif arguments == ("pooled", None):  # some frames are float64, some float32
            metrics.update(score + np.float64(1e-12) if score[0, 5] > 0 else score, label)
        elif kind is CalibrationMetrics:
            metrics.update(1 / (1 + np.exp(-score)), pred=(score > 1).astype(int), label=label)
        else:
            metrics.update(score, label)
    return metrics


@pytest.mark.parametrize("name", MADE)
def test_counts_depend_only_on_the_pixels(name, frames, as_bytes):
    data = frames()
    whole = fill(name, data)
    expected, numbers = as_bytes(whole), str(whole.compute())  # as text, so that NaN equals NaN
    assert as_bytes(fill(name, data[::-1])) == expected
    for shards in ([data[:1], data[1:]], [data[4:], data[2:4], data[:2]], [[], data[3:], [], data[:3]]):
        joined = fill(name, [])
        for shard in shards:
            part = fill(name, shard)
            before = as_bytes(part)
            joined.merge(part)
            assert as_bytes(part) == before
        assert as_bytes(joined) == expected and str(joined.compute()) == numbers
    interrupted = fill(name, data[:4])
    interrupted.compute()
    assert str(fill(name, data[4:], interrupted).compute()) == numbers


@pytest.mark.parametrize("name", MADE)
def test_pickled_metrics_are_read_back_and_counted_on(name, frames, as_bytes):
    data = frames(3)
    for first in (0, 1):
        kept, other = fill(name, data[:first]), fill(name, data[2:])
        pickled = pickle.dumps(kept)
        # None of the empty room for scores to come.
        assert len(pickled) < 100_000
        back = pickle.loads(pickled)
        assert as_bytes(back) == as_bytes(kept)
        for metrics in (back, kept):
            fill(name, data[1:2], metrics)
            metrics.merge(other)
        assert as_bytes(back) == as_bytes(kept)
        assert str(back.compute()) == str(kept.compute())
