"""Closed-set metrics against the numbers of mmseg, PAnS and DenseHybrid, and hand-worked cases."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from gmm_anomaly.metrics import ConfusionMetrics

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "closed_set.json").read_text())
PANS = json.loads((DATA / "pans_streethazards.json").read_text())


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


def test_frequency_weighted_iou_by_hand():
    metrics = ConfusionMetrics(3, ["road", "car", "sky"])
    metrics.update([[0, 0, 0, 1]], [[0, 0, 1, 1]])
    found = metrics.compute()
    assert found["IoU"][:2] == pytest.approx([2 / 3, 1 / 2]) and math.isnan(found["IoU"][2])
    assert found["mIoU"] == pytest.approx(7 / 12) and found["fwIoU"] == pytest.approx(7 / 12)
    assert found["class_names"] == ["road", "car", "sky"]


@pytest.mark.parametrize("convention", ["mmseg", "pans"])
def test_no_labelled_pixel(convention):
    metrics = ConfusionMetrics(3, convention=convention)
    metrics.update([[0, 1]], [[255, 255]])
    found = metrics.compute()
    assert all(math.isnan(found[key]) for key in ("mIoU", "aAcc", "fwIoU", "mFscore"))
    assert found["note"] == "no labelled pixel: every number is undefined"


def test_merging_and_states(arrays, tmp_path):
    def fill(ids) -> ConfusionMetrics:
        metrics = ConfusionMetrics(19, class_names=[f"class {index}" for index in range(19)])
        for image in ids:
            metrics.update(arrays["pred"][image], arrays["gt"][image])
        return metrics

    whole = fill([0, 1, 2, 3])
    joined = ConfusionMetrics.from_state(pickle.loads(pickle.dumps(fill([3, 1]).state())))
    joined.merge(fill([2, 0]))
    assert str(joined.state()) == str(whole.state())
    np.savez(tmp_path / "state.npz", **whole.state())
    with np.load(tmp_path / "state.npz") as loaded:
        assert str(ConfusionMetrics.from_state(loaded).compute()) == str(whole.compute())
    nameless = ConfusionMetrics(2)
    assert ConfusionMetrics.from_state(nameless.state()).settings() == nameless.settings()


def test_what_cannot_be_counted_is_named_and_changes_nothing():
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
