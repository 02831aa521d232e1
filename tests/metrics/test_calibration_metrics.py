"""Expected calibration error against brute force over pixels and bins, and hand-worked cases."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gmm_anomaly.metrics import CalibrationMetrics


def brute_force(confidence: np.ndarray, correct: np.ndarray, bins: int) -> tuple[float, float]:
    """ECE and MCE bin by bin, with the interval of each bin written out."""
    ece, gaps = 0.0, []
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (confidence > low) & (confidence <= high)
        if number == 0:
            inside |= confidence == 0
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].astype(np.float64).mean())
            ece += inside.mean() * gap
            gaps.append(gap)
    return ece, max(gaps)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hnp.arrays(np.float32, 30, elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    hnp.arrays(np.bool_, 30),
    st.sampled_from([1, 4, 15]),
)
def test_brute_force(confidence, correct, bins):
    metrics = CalibrationMetrics(bins)
    metrics.update(confidence[:11], correct[:11])
    metrics.update(confidence[11:], correct[11:])
    found = metrics.compute()
    assert (found["ECE"], found["MCE"]) == pytest.approx(brute_force(confidence, correct, bins), abs=1e-8)
    assert found["accuracy"] == pytest.approx(correct.mean())
    assert found["confidence"] == pytest.approx(confidence.mean(dtype=np.float64), abs=1e-8)


def test_by_hand():
    metrics = CalibrationMetrics(num_bins=2)
    metrics.update([[0.5, 0.4, 0.75, 1.0]], [[True, False, True, True]])
    found = metrics.compute()
    assert found["ECE"] == pytest.approx(0.5 * abs(0.5 - 0.45) + 0.5 * abs(1 - 0.875))
    assert found["MCE"] == pytest.approx(0.125)
    curve = metrics.curve()
    assert curve["edges"].tolist() == [0, 0.5, 1]
    assert curve["confidence"] == pytest.approx([0.45, 0.875]) and curve["accuracy"].tolist() == [0.5, 1]
    assert curve["pixels"].tolist() == [2, 2]


def test_predictions_and_labels_instead_of_correctness():
    rng = np.random.default_rng(0)
    confidence = rng.random((20, 30))
    pred, label = rng.integers(0, 3, (2, 20, 30))
    label[rng.random(label.shape) < 0.2] = 255
    by_label, by_correctness, beside = CalibrationMetrics(), CalibrationMetrics(), CalibrationMetrics()
    by_label.update(confidence, pred=pred, label=label)
    valid = label != 255
    by_correctness.update(confidence[valid], (pred == label)[valid])
    beside.update(confidence, pred == label, label=label)
    assert by_label.compute() == by_correctness.compute() == beside.compute()
    assert by_label.compute()["pixels"] == valid.sum()


def test_order_shards_and_states(tmp_path):
    rng = np.random.default_rng(1)
    data = [(rng.random((8, 9)).astype(np.float32), rng.random((8, 9)) < 0.7) for _ in range(6)]

    def fill(images) -> CalibrationMetrics:
        metrics = CalibrationMetrics()
        for confidence, correct in images:
            metrics.update(confidence, correct)
        return metrics

    whole = fill(data)
    joined = CalibrationMetrics.from_state(pickle.loads(pickle.dumps(fill(data[4:]).state())))
    joined.merge(fill(data[:4][::-1]))
    assert str(joined.state()) == str(whole.state()) and joined.compute() == whole.compute()
    np.savez(tmp_path / "state.npz", **whole.state())
    with np.load(tmp_path / "state.npz") as loaded:
        assert CalibrationMetrics.from_state(loaded).compute() == whole.compute()


def test_large_images_are_counted_in_parts(monkeypatch):
    rng = np.random.default_rng(2)
    confidence, correct = rng.random((40, 50)), rng.random((40, 50)) < 0.5
    whole, parts = CalibrationMetrics(), CalibrationMetrics()
    whole.update(confidence, correct)
    monkeypatch.setattr("gmm_anomaly.metrics.calibration._CHUNK", 333)
    parts.update(confidence, correct)
    assert str(parts.state()) == str(whole.state())


def test_empty_and_rounding():
    found = CalibrationMetrics().compute()
    assert math.isnan(found["ECE"]) and found["note"].startswith("no labelled pixel")
    assert np.isnan(CalibrationMetrics().curve()["accuracy"]).all()
    metrics = CalibrationMetrics()
    metrics.update([[1 + 1e-6, -1e-7]], [[True, False]])
    assert metrics.compute()["ECE"] == 0


def test_what_cannot_be_counted_is_named_and_changes_nothing():
    metrics = CalibrationMetrics()
    confidence, correct = np.full((2, 2), 0.5), np.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"image 'x': confidence must lie in \[0, 1\], found 7.5 to 7.5"):
        metrics.update(confidence * 15, correct, name="x")
    with pytest.raises(ValueError, match="image number 1: 4 of 4 scores are NaN"):
        metrics.update(confidence * np.nan, correct)
    with pytest.raises(ValueError, match="give either correct, or both pred and label"):
        metrics.update(confidence)
    with pytest.raises(ValueError, match="give either correct, or both pred and label"):
        metrics.update(confidence, pred=correct.astype(int))
    with pytest.raises(TypeError, match="correct must be boolean, found int64"):
        metrics.update(confidence, correct.astype(np.int64))
    with pytest.raises(ValueError, match=r"confidence and prediction must have the same shape"):
        metrics.update(confidence, correct[:1])
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        CalibrationMetrics(0)
    with pytest.raises(ValueError, match="num_bins 15 and 10"):
        metrics.merge(CalibrationMetrics(10))
    assert metrics.images == 0 and metrics.compute()["pixels"] == 0
