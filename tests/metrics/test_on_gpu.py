"""What a GPU counts, here with its code on the CPU: all that the CPU's own code gives, to the last digit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from gmm_anomaly.metrics import PixelMetrics, pixel
from gmm_anomaly.metrics.pixel import PROTOCOLS


def frames(dtype):
    """Scores with ties, both zeros and infinities, and labels; one frame lacks known pixels, one others."""
    rng = np.random.default_rng(0)
    for number in range(6):
        score = rng.normal(0, 3, (30, 40))
        score[::3] = score[::3].round(1)
        score[5, :4], score[6, :3] = [0.0, -0.0, np.inf, -np.inf], 1e5
        label = rng.choice([0, 1, 255], score.shape, p=[0.8, 0.1, 0.1]).astype(np.uint8)
        label[label == (number if number < 2 else 7)] = 255
        yield score.astype(dtype), label


def counted(given, *arguments, **options):
    metrics = PixelMetrics(*arguments, **options)
    for score, label in given:
        metrics.update(score, label)
    return metrics


def everything(metrics):
    rules = [metrics.fpr(rule) for rule in ("nearest", "rba", "maskomaly")]
    counts = pickle.loads(pickle.dumps(metrics)).counts()
    curves = [*metrics.curve(50).values(), *metrics.histogram(20).values()]
    return metrics.compute(), rules, [counts.low, counts.high, counts.known, counts.anomalous, *curves]


@pytest.mark.parametrize("max_distinct", [2**24, 700])
@pytest.mark.parametrize("precision", ["float32", "float16", None])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_same_numbers_as_on_the_cpu(monkeypatch, protocol, precision, max_distinct):
    for dtype in (np.float32, np.float64):
        here = counted(frames(dtype), protocol, precision, max_distinct=max_distinct)
        with monkeypatch.context() as patched:
            patched.setattr(pixel, "is_on_gpu", lambda score: isinstance(score, torch.Tensor))
            tensors = [(torch.from_numpy(score), label) for score, label in frames(dtype)]
            there = counted(tensors, protocol, precision, max_distinct=max_distinct)
        (found, *found_rules), (expected, *expected_rules) = everything(there), everything(here)
        np.testing.assert_equal(found, expected)
        np.testing.assert_equal(found_rules, expected_rules)
        if protocol == "pooled" and precision != "float16":
            assert found["exact"] is (max_distinct > 700)


def test_same_errors_as_on_the_cpu(monkeypatch):
    score, label = next(frames(np.float32))
    nan, other = score.copy(), label.copy()
    nan[2, 3], other[4, 5] = np.nan, 7
    for wrong in ((nan, label), (score, other), (score[1:], label), (score, label.astype(np.float32))):
        with pytest.raises((ValueError, TypeError)) as expected:
            PixelMetrics().update(*wrong, "a")
        with monkeypatch.context() as patched, pytest.raises(expected.type) as found:
            patched.setattr(pixel, "is_on_gpu", lambda score: isinstance(score, torch.Tensor))
            PixelMetrics().update(torch.from_numpy(wrong[0]), wrong[1], "a")
        assert str(found.value) == str(expected.value)
