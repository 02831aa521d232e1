"""Closed-set metrics against the numbers of mmseg, PAnS and DenseHybrid, scikit-learn, and plain counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from gmm_anomaly.metrics import CalibrationMetrics, ConfusionMetrics

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "closed_set.json").read_text())
PANS = json.loads((DATA / "pans_streethazards.json").read_text())

# A busy machine is not a fault of the metrics.
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "closed_set.npz") as loaded:
        return dict(loaded)


def counted(arrays: dict, ids: list[int], convention: str, reduce_zero_label: bool = False) -> dict:
    metrics = ConfusionMetrics(19, convention=convention)
    for image in ids:
        label = arrays["gt"][image]
        if reduce_zero_label:
            label = np.where((label == 0) | (label == 255), 255, label.astype(int) - 1)
        metrics.update(arrays["pred"][image], label)
    return metrics.compute()


@pytest.mark.parametrize("name", ["mmseg_all", "mmseg_image0", "mmseg_reduce_zero_label"])
def test_mmseg(name, arrays):
    expected = GOLDEN[name]
    found = counted(arrays, expected["ids"], "mmseg", reduce_zero_label="reduce" in name)
    assert found["aAcc"] == pytest.approx(expected["aAcc"], abs=1e-9)
    for key in ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall"):
        assert found[key] == pytest.approx([float(value) for value in expected[key]], abs=1e-9, nan_ok=True)
        assert found[f"m{key}"] == pytest.approx(expected["nanmean"][key], abs=1e-9)


def check_pans(found: dict, expected: dict) -> None:
    names = {"aAcc": "Overall Acc", "mAcc": "Mean Acc", "fwIoU": "FreqW Acc", "mIoU": "Mean IoU"}
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-9)
    for ours, theirs in (("IoU", "Class IoU"), ("Acc", "Class Acc")):
        values = [math.nan if value == "X" else value for value in expected[theirs].values()]
        assert found[ours] == pytest.approx(values, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["pans_all", "pans_image0"])
def test_pans(name, arrays):
    check_pans(counted(arrays, GOLDEN[name]["ids"], "pans"), GOLDEN[name])


@pytest.mark.parametrize("name", sorted(PANS["datasets"]))
def test_pans_streethazards(name):
    expected = PANS["datasets"][name]
    metrics = ConfusionMetrics(13, convention="pans")
    with np.load(DATA / "pans_streethazards.npz") as loaded:
        for image in expected["ids"]:
            label = loaded["labels"][image]
            metrics.update(loaded["preds"][image], np.where((label >= 0) & (label < 13), label, 255))
    check_pans(metrics.compute(), expected)
    assert metrics.matrix.tolist() == expected["confusion_matrix_rows_gt_cols_pred"]


def test_densehybrid(arrays):
    found = counted(arrays, [0, 1, 2, 3], "mmseg")
    assert found["mIoU"] == pytest.approx(GOLDEN["densehybrid_iou_ignore19"]["mIoU"], abs=1e-9)


def test_predictions_outside_the_classes_are_wrong():
    metrics = ConfusionMetrics(2)
    metrics.update([[0, 7, -1, 1]], [[0, 0, 1, 1]])
    found = metrics.compute()
    assert (found["aAcc"], found["outside"], found["pixels"]) == (0.5, 2, 4)
    assert found["IoU"] == [0.5, 0.5] and found["Precision"] == [1.0, 1.0]
    assert metrics.matrix.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("convention", ["mmseg", "pans"])
def test_no_labelled_pixel(convention):
    metrics = ConfusionMetrics(3, convention=convention)
    metrics.update([[0, 1]], [[255, 255]])
    found = metrics.compute()
    assert all(math.isnan(found[key]) for key in ("mIoU", "aAcc", "fwIoU", "mFscore"))
    assert found["note"] == "no labelled pixel: every number is undefined"


def test_what_a_confusion_matrix_cannot_count_is_named_and_changes_nothing():
    metrics = ConfusionMetrics(3)
    with pytest.raises(ValueError, match=r"image 'x': labels must be 0 to 2, or 255 .* found also \[-1, 9\]"):
        metrics.update([[0, 0, 0]], [[9, -1, 255]], name="x")
    with pytest.raises(ValueError, match=r"found \(1, 2\) and \(2, 1\)"):
        metrics.update([[0, 0]], [[0], [0]])
    with pytest.raises(TypeError, match="image number 1: pred must be an array of integers"):
        metrics.update([[0.5]], [[0]])
    assert metrics.images == 0 and metrics.matrix.sum() == 0
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        ConfusionMetrics(0)
    with pytest.raises(ValueError, match="class_names must have 2 names, found 1"):
        ConfusionMetrics(2, ["road"])
    with pytest.raises(ValueError, match="ignore_label 1 is one of the 2 classes"):
        ConfusionMetrics(2, ignore_label=1)
    with pytest.raises(ValueError, match="convention must be mmseg or pans, found 'voc'"):
        ConfusionMetrics(2, convention="voc")
    with pytest.raises(ValueError, match="convention 'mmseg' and 'pans'"):
        metrics.merge(ConfusionMetrics(3, convention="pans"))


LABELLED = st.tuples(
    hnp.arrays(np.int64, (7, 9), elements=st.integers(0, 3)),
    hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2, 3, 255])),
)


@few
@given(st.lists(LABELLED, min_size=1, max_size=3))
def test_confusion_agrees_with_scikit_learn(frames):
    metrics = ConfusionMetrics(4)
    for frame in frames:
        metrics.update(*frame)
    pred, label = (np.concatenate([frame[part].ravel() for frame in frames]) for part in (0, 1))
    pred, label = pred[label != 255], label[label != 255]
    assume(len(label))
    np.testing.assert_array_equal(metrics.matrix, confusion_matrix(label, pred, labels=range(4)))
    found = metrics.compute()
    present = sorted(set(label) | set(pred))
    expected = jaccard_score(label, pred, labels=present, average=None, zero_division=0)
    assert found["mIoU"] == pytest.approx(expected.mean())
    assert found["aAcc"] == pytest.approx(accuracy_score(label, pred))


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


@few
@given(
    hnp.arrays(np.float32, 30, elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    hnp.arrays(np.bool_, 30),
    st.sampled_from([1, 4, 15]),
)
def test_calibration_agrees_with_brute_force(confidence, correct, bins):
    metrics = CalibrationMetrics(bins)
    metrics.update(confidence[:11], correct[:11])
    metrics.update(confidence[11:], correct[11:])
    found = metrics.compute()
    assert (found["ECE"], found["MCE"]) == pytest.approx(brute_force(confidence, correct, bins), abs=1e-8)
    assert found["accuracy"] == pytest.approx(correct.mean())
    assert found["confidence"] == pytest.approx(confidence.mean(dtype=np.float64), abs=1e-8)


def test_calibration_by_hand():
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


def test_large_images_are_counted_in_parts(monkeypatch):
    rng = np.random.default_rng(2)
    confidence, correct = rng.random((40, 50)), rng.random((40, 50)) < 0.5
    whole, parts = CalibrationMetrics(), CalibrationMetrics()
    whole.update(confidence, correct)
    monkeypatch.setattr("gmm_anomaly.metrics.closed_set._CHUNK", 333)
    parts.update(confidence, correct)
    assert str(parts.compute()) == str(whole.compute()) and str(parts.curve()) == str(whole.curve())


def test_calibration_without_pixels_and_beyond_one_by_rounding():
    found = CalibrationMetrics().compute()
    assert math.isnan(found["ECE"]) and found["note"].startswith("no labelled pixel")
    assert np.isnan(CalibrationMetrics().curve()["accuracy"]).all()
    metrics = CalibrationMetrics()
    metrics.update([[1 + 1e-6, -1e-7]], [[True, False]])
    assert metrics.compute()["ECE"] == 0


def test_confidences_that_cannot_be_counted_are_named_and_change_nothing():
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
