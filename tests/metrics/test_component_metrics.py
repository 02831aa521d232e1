"""Component metrics against the benchmark's own numbers, hand-worked scenes and a plain version."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gmm_anomaly.metrics import ComponentMetrics
from tests.oracles.components import plain_components

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "smiyc_components.json").read_text())
TRACKS = {
    "SegEval-AnomalyTrack": ComponentMetrics.anomaly_track,
    "SegEval-ObstacleTrack": ComponentMetrics.obstacle_track,
}
KEYS = ["0.25", "0.30", "0.35", "0.40", "0.45", "0.50", "0.55", "0.60", "0.65", "0.70", "0.75"]


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "smiyc_components.npz") as loaded:
        return dict(loaded)


def ratios(rows: np.ndarray) -> list[float]:
    return sorted((rows[:, 0] / rows[:, 1]).tolist())


def check_aggregate(found: dict, expected: dict) -> None:
    for ours, theirs in (("sIoU_gt", "sIoU_gt"), ("PPV", "prec_pred"), ("F1", "f1_mean")):
        assert found[ours] == pytest.approx(float(expected[theirs]), abs=1e-12, nan_ok=True)
    for kind in ("tp", "fn", "fp"):
        for percent in ("25", "50", "75"):
            assert found[kind][f"0.{percent}"] == expected[f"{kind}_{percent}"]


def check_frames(make, scores: list, labels: list, expected: dict) -> None:
    """Every component of every frame, the counts at every threshold and the aggregate."""
    metrics = make(expected["threshold"])
    total = {kind: np.zeros(11, np.int64) for kind in ("tp", "fn", "fp")}
    for score, label, frame in zip(scores, labels, expected["per_frame"], strict=True):
        found = metrics.update(score, label)
        assert ratios(found.anomalies) == sorted(frame["sIoU_gt"])
        assert ratios(found.predictions) == sorted(frame["prec_pred"])
        assert sorted(found.predictions[:, 1].tolist()) == sorted(frame["size_pred"])
        alone = make(expected["threshold"])
        alone.update(score, label)
        for kind in total:
            assert list(alone.compute()[kind].values()) == frame[kind]
            total[kind] += frame[kind]
    found = metrics.compute()
    for kind, counts in total.items():
        assert found[kind] == dict(zip(KEYS, counts.tolist(), strict=True))
    check_aggregate(found, expected["aggregate"])


@pytest.mark.parametrize("threshold", ["thr_0.5", "thr_0.25", "thr_bestF1_exact_comparison"])
@pytest.mark.parametrize("track", sorted(TRACKS))
def test_benchmark_frames(track, threshold, arrays):
    expected = GOLDEN["segments"][track][threshold]
    scores = [arrays[f"score_{frame:02d}"] for frame in range(20)]
    labels = [arrays[f"label_{frame:02d}"] for frame in range(20)]
    check_frames(TRACKS[track], scores, labels, expected)
    for name, subset in expected["aggregate_subsets"].items():
        metrics = TRACKS[track](expected["threshold"])
        for frame in subset["ids"]:
            metrics.update(scores[frame], labels[frame])
        found = metrics.compute()
        if "error" in subset:  # the reference divides by zero
            assert name == "nothing_3" and math.isnan(found["F1"]) and math.isnan(found["sIoU_gt"])
            assert "no anomaly and no predicted component" in found["note"]
        else:
            check_aggregate(found, subset)


@pytest.mark.parametrize("track", sorted(TRACKS))
def test_threshold_between_two_float16_numbers_is_compared_exactly(track, arrays):
    group = GOLDEN["segments_threshold_rounding"]
    assert group["pixels_that_differ"] > 0
    scores = [arrays[f"score_{frame:02d}"] for frame in group["ids"]]
    labels = [arrays[f"label_{frame:02d}"] for frame in group["ids"]]
    assert all(score.dtype == np.float16 for score in scores)
    check_frames(TRACKS[track], scores, labels, group[track]["exact_comparison"])
    rounded = dict(group[track]["numpy1_rule_threshold_rounded_to_float16"])
    rounded["threshold"] = group["threshold_as_float16"]
    check_frames(TRACKS[track], scores, labels, rounded)

    # Scores like logarithms.
    group = GOLDEN["segments_logscale"]
    names = [f"{frame:02d}" for frame in group["ids"]]
    scores = [(arrays[f"score_{n}"].astype(np.float32) * 40 - 20).astype(np.float16) for n in names]
    labels = [arrays[f"label_{n}"] for n in names]
    check_frames(TRACKS[track], scores, labels, group[track]["exact_comparison"])


def scene(height: int, width: int, **boxes) -> np.ndarray:
    """Zeros with boxes (top, bottom, left, right): 255 where the name begins with "v", else 1."""
    image = np.zeros((height, width), np.uint8)
    for name, (top, bottom, left, right) in boxes.items():
        image[top:bottom, left:right] = 255 if name.startswith("v") else 1
    return image


def compared(prediction, label, sizes=(0, 0)) -> tuple[list[Fraction], list[Fraction]]:
    found = ComponentMetrics(*sizes, 0.5).update(prediction.astype(np.float32), label)
    return tuple(sorted(Fraction(int(a), int(b)) for a, b in rows) for rows in found)


def test_two_anomalies_bridged_by_one_prediction():
    label = scene(6, 14, a1=(1, 5, 1, 5), a2=(1, 5, 9, 13))
    prediction = scene(6, 14, p=(1, 5, 1, 13))
    siou, ppv = compared(prediction, label)
    assert (siou, ppv) == ([Fraction(1, 2)] * 2, [Fraction(2, 3)])
    metrics = ComponentMetrics(0, 0, 0.5)
    metrics.update(prediction.astype(float), label)
    found = metrics.compute()
    assert (found["tp"]["0.50"], found["tp"]["0.65"]) == (2, 0)
    assert (found["fp"]["0.65"], found["fp"]["0.70"]) == (0, 1)
    assert list(found["f1"].values()) == [1.0] * 6 + [0.0] * 5  # above 0.50 both anomalies are missed
    assert found["F1"] == pytest.approx(6 / 11)


def test_sizes_of_the_tracks_and_corners_that_touch():
    corners = scene(8, 8, a1=(0, 4, 0, 4), a2=(4, 8, 4, 8))
    assert compared(corners, corners) == ([1], [1])
    label, prediction = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    label[:10, :10] = prediction[:10, :10] = 1
    prediction[30:50, 30:55] = 1
    assert compared(prediction, label, (500, 100)) == ([0], [0])
    assert compared(prediction, label, (50, 10)) == ([1], [0, 1])
    assert compared(prediction, label, (501, 101)) == ([], [])
    # An anomaly that becomes void takes the prediction on it along.
    assert compared(prediction, label, (100, 101)) == ([], [0])


def test_background_below_the_limit_becomes_void_as_in_the_reference():
    label = np.ones((10, 10), np.uint8)
    label[0, :5] = 0
    prediction = np.ones((10, 10))
    assert compared(prediction, label, (1, 5)) == ([Fraction(95, 100)], [Fraction(95, 100)])
    assert compared(prediction, label, (1, 6)) == ([1], [1])


SCENE = (
    hnp.arrays(np.float32, (9, 13), elements=st.integers(-4, 4).map(lambda step: step / 4)),
    hnp.arrays(np.uint8, (9, 13), elements=st.sampled_from([0, 0, 1, 1, 255])),
)
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(*SCENE, st.integers(0, 6), st.integers(0, 6), st.data())
def test_random_scenes_agree_with_the_plain_version(score, label, min_prediction, min_anomaly, data):
    found = ComponentMetrics(min_prediction, min_anomaly, 0.5).update(score, label)
    siou, ppv = plain_components(score, label, 0.5, min_prediction, min_anomaly)
    assert ratios(found.anomalies) == sorted(siou) and ratios(found.predictions) == sorted(ppv)
    # A strictly increasing map of score and threshold changes nothing.
    steps = data.draw(hnp.arrays(np.int64, 9, elements=st.integers(1, 1000)))
    values = np.cumsum(steps).astype(np.float32)
    moved = ComponentMetrics(min_prediction, min_anomaly, float(values[6]))
    again = moved.update(values[np.searchsorted(np.arange(-4, 5) / 4, score)], label)
    assert all(map(np.array_equal, again, found))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_score_at_the_threshold_is_predicted_if_inclusive(dtype):
    label = np.ones((2, 2), np.uint8)
    value = dtype(0.3)
    above = np.nextafter(value, dtype(1))
    for score, threshold, predicted in (
        (value, float(value), False),
        (above, float(value), True),
        (value, np.nextafter(float(value), 0), True),
        (above, np.nextafter(float(above), 0), True),
        (value, np.nextafter(float(value), 1), False),
        (dtype(np.inf), 1e300, True),
        (dtype(1), np.inf, False),
        (dtype(1), -np.inf, True),
    ):
        found = ComponentMetrics(0, 0, threshold).update(np.full((2, 2), score), label)
        assert (len(found.predictions) == 1) == predicted
        found = ComponentMetrics(0, 0, threshold, inclusive=True).update(np.full((2, 2), score), label)
        assert (len(found.predictions) == 1) == (float(score) >= threshold)


def test_components_by_size_of_a_frame_counted_by_hand():
    """Anomalies of 4, 120 and 450 pixels; the smallest is too small, the middle one is missed, the largest is
    found but for 50 pixels, and 150 known pixels are predicted as well."""
    label = scene(60, 100, a1=(0, 2, 0, 2), a2=(10, 20, 0, 12), a3=(30, 45, 0, 30))
    predicted = scene(60, 100, p1=(30, 45, 0, 30), p2=(0, 10, 80, 95))
    predicted.reshape(-1)[np.flatnonzero((label == 1).ravel())[-50:]] = 0
    metrics = ComponentMetrics.obstacle_track(0.5)
    metrics.update(predicted.astype(np.float32), label)
    small, large = metrics.by_size()
    assert (small["from"], small["to"], large["from"], large["to"]) == (100, 400, 400, 1600)
    assert (small["anomalies"], small["found"], small["sIoU_gt"]) == (1, 0, 0.0)
    assert (large["anomalies"], large["found"], large["sIoU_gt"]) == (1, 1, 400 / 450)
    assert (small["predictions"], small["PPV"], large["predictions"], large["PPV"]) == (1, 0.0, 1, 1.0)


def test_only_one_side_missing():
    some, none = np.eye(3, dtype=int), np.zeros((3, 3), int)
    for predicted, label, missing, found_one, note in (
        (none, some, "PPV", "sIoU_gt", "no predicted component of at least the minimum size"),
        (some, none, "sIoU_gt", "PPV", "no anomaly of at least the minimum size"),
    ):
        metrics = ComponentMetrics(0, 0, 0.5)
        metrics.update(predicted.astype(float), label)
        found = metrics.compute()
        assert found["F1"] == found[found_one] == 0 and math.isnan(found[missing]) and found["note"] == note


def test_what_cannot_be_counted_is_named_and_changes_nothing():
    metrics = ComponentMetrics.anomaly_track(0.5)
    score, label = np.zeros((4, 5)), np.zeros((4, 5), int)
    with pytest.raises(ValueError, match="image 'a': 20 of 20 scores are NaN"):
        metrics.update(score * np.nan, label, name="a")
    with pytest.raises(ValueError, match="image number 1: labels must be .* found also 3;"):
        metrics.update(score, label + 3)
    with pytest.raises(ValueError, match=r"found \(4, 5\) and \(5, 4\)"):
        metrics.update(score, label.T)
    with pytest.raises(ValueError, match=r"must be \(H, W\) and not empty, found \(4, 5, 1\)"):
        metrics.update(score[..., None], label[..., None])
    with pytest.raises(ValueError, match="threshold is NaN; take best_f1_threshold"):
        ComponentMetrics(0, 0, math.nan)
    with pytest.raises(ValueError, match="numbers of pixels, found -1 and 0"):
        ComponentMetrics(-1, 0, 0.5)
    with pytest.raises(ValueError, match="min_prediction_size 500 and 50, min_anomaly_size 100 and 10"):
        metrics.merge(ComponentMetrics.obstacle_track(0.5))
    with pytest.raises(TypeError, match="cannot merge int into ComponentMetrics"):
        metrics.merge(3)
    assert metrics.frames == 0 and not metrics.by_size()
