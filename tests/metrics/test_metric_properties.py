"""Properties of the metrics on generated frames, against scikit-learn, float64 and plain counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from gmm_anomaly.metrics import CalibrationMetrics, ComponentMetrics, ConfusionMetrics, PixelMetrics

# A busy machine is not a fault of the metrics.
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHAPE = (7, 9)
CLASSES = 4
SCORES = hnp.arrays(np.float32, SHAPE, elements=st.integers(-4, 4).map(lambda step: step / 4))
ANOMALIES = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 0, 1, 255]))
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([*range(CLASSES), 255]))
PREDICTIONS = hnp.arrays(np.int64, SHAPE, elements=st.integers(0, CLASSES - 1))
CONFIDENCES = hnp.arrays(np.float64, SHAPE, elements=st.floats(0, 1))
MAPS = [np.fliplr, np.flipud, np.transpose, np.rot90]


def components(frames, threshold=0.0, sizes=(2, 2)) -> ComponentMetrics:
    metrics = ComponentMetrics(*sizes, threshold)
    for score, label in frames:
        metrics.update(score, label)
    return metrics


def same(one: dict, other: dict) -> None:
    np.testing.assert_equal(one, other)


@few
@given(st.lists(st.tuples(SCORES, ANOMALIES), min_size=1, max_size=3), st.sampled_from(MAPS))
def test_components_do_not_know_up_from_left(frames, turn):
    turned = [(turn(score).copy(), turn(label).copy()) for score, label in frames]
    same(components(turned).compute(), components(frames).compute())


@few
@given(st.tuples(*[st.tuples(SCORES, ANOMALIES)] * 3), st.permutations(range(3)))
def test_component_merging_is_associative_and_commutative(frames, order):
    expected = components(frames).compute()
    first, second, third = (components([frames[index]]) for index in order)
    second.merge(third)
    first.merge(second)
    same(first.compute(), expected)
    first, second, third = (components([frames[index]]) for index in order)
    first.merge(second)
    first.merge(third)
    same(first.compute(), expected)
    assert str(ComponentMetrics.from_state(first.state()).state()) == str(first.state())


@few
@given(st.lists(st.tuples(SCORES, ANOMALIES), min_size=1, max_size=2), st.data())
def test_components_follow_increasing_maps_of_score_and_threshold(frames, data):
    grid = np.arange(-4, 5) / 4
    steps = data.draw(hnp.arrays(np.int64, len(grid), elements=st.integers(1, 1000)))
    values = np.cumsum(steps).astype(np.float32)
    threshold = data.draw(st.sampled_from(range(len(grid))))
    mapped = [(values[np.searchsorted(grid, score)], label) for score, label in frames]
    found = components(mapped, float(values[threshold])).compute()
    expected = components(frames, float(grid[threshold])).compute()
    same(found | {"threshold": None}, expected | {"threshold": None})


@few
@given(st.lists(ANOMALIES, min_size=1, max_size=3))
def test_a_prediction_of_the_anomalies_themselves_is_perfect(labels):
    assume(any((label == 1).any() for label in labels))
    found = components([((label == 1).astype(np.float32), label) for label in labels], 0.5, (0, 0)).compute()
    assert (found["sIoU_gt"], found["PPV"], found["F1"]) == (1, 1, 1)
    assert not any(found["fp"].values()) and not any(found["fn"].values())


@few
@given(st.lists(st.tuples(SCORES, ANOMALIES), min_size=1, max_size=3))
def test_component_numbers_are_shares(frames):
    found = components(frames).compute()
    for key in ("sIoU_gt", "PPV", "F1"):
        assert np.isnan(found[key]) or 0 <= found[key] <= 1


def confusion(frames, **options) -> ConfusionMetrics:
    metrics = ConfusionMetrics(CLASSES, **options)
    for pred, label in frames:
        metrics.update(pred, label)
    return metrics


@few
@given(st.lists(st.tuples(PREDICTIONS, LABELS), min_size=1, max_size=3))
def test_confusion_agrees_with_scikit_learn(frames):
    pred, label = (np.concatenate([frame[part].ravel() for frame in frames]) for part in (0, 1))
    pred, label = pred[label != 255], label[label != 255]
    assume(len(label))
    metrics = confusion(frames)
    np.testing.assert_array_equal(metrics.matrix, confusion_matrix(label, pred, labels=range(CLASSES)))
    found = metrics.compute()
    present = sorted(set(label) | set(pred))
    expected = jaccard_score(label, pred, labels=present, average=None, zero_division=0)
    assert found["mIoU"] == pytest.approx(expected.mean())
    assert found["aAcc"] == pytest.approx(accuracy_score(label, pred))


@few
@given(st.lists(st.tuples(PREDICTIONS, LABELS), min_size=1, max_size=2), st.permutations(range(CLASSES)))
def test_confusion_is_equivariant_to_renaming_classes(frames, names):
    names = np.array([*names, *[255] * (256 - CLASSES)], np.uint8)
    renamed = confusion([(names[pred].astype(np.int64), names[label]) for pred, label in frames])
    order = names[:CLASSES]
    np.testing.assert_array_equal(renamed.matrix[np.ix_(order, order)], confusion(frames).matrix)


@few
@given(st.tuples(*[st.tuples(PREDICTIONS, LABELS)] * 3), st.permutations(range(3)))
def test_confusion_merging_is_associative_and_commutative(frames, order):
    expected = confusion(frames).state()
    first, second, third = (confusion([frames[index]]) for index in order)
    second.merge(third)
    first.merge(second)
    same(first.state(), expected)
    same(ConfusionMetrics.from_state(first.state()).state(), expected)


def calibration(frames, bins=5) -> CalibrationMetrics:
    metrics = CalibrationMetrics(bins)
    for confidence, pred, label in frames:
        metrics.update(confidence, pred=pred, label=label)
    return metrics


def plain_ece(frames, bins: int) -> float:
    """Guo et al., Eq. 5, bin by bin in float64."""
    confidence, pred, label = (np.concatenate([frame[part].ravel() for frame in frames]) for part in range(3))
    valid = label != 255
    confidence, right = confidence[valid], (pred == label)[valid]
    number = np.clip(np.ceil(confidence * bins).astype(int), 1, bins)
    gaps = [
        (number == one).mean() * abs(right[number == one].mean() - confidence[number == one].mean())
        for one in np.unique(number)
    ]
    return float(sum(gaps))


# Away from the edges of bins, on which two ways to round may differ.
MIDDLES = hnp.arrays(np.float64, SHAPE, elements=st.integers(0, 99).map(lambda step: step / 100 + 0.005))
CALIBRATION_FRAME = st.tuples(MIDDLES, PREDICTIONS, LABELS)


@few
@given(st.lists(CALIBRATION_FRAME, min_size=1, max_size=3), st.sampled_from([1, 4, 10]))
def test_calibration_error_agrees_with_a_plain_one(frames, bins):
    assume(any((frame[2] != 255).any() for frame in frames))
    assert calibration(frames, bins).compute()["ECE"] == pytest.approx(plain_ece(frames, bins), abs=1e-7)


@few
@given(
    st.tuples(*[st.tuples(CONFIDENCES, PREDICTIONS, LABELS)] * 3),
    st.permutations(range(3)),
    st.randoms(use_true_random=False),
)
def test_calibration_depends_on_no_order(frames, order, random):
    expected = calibration(frames).state()
    shuffled = []
    for frame in frames:
        places = list(range(frame[0].size))
        random.shuffle(places)
        shuffled.append(tuple(part.ravel()[places].reshape(SHAPE) for part in frame))
    first, second, third = (calibration([shuffled[index]]) for index in order)
    second.merge(third)
    first.merge(second)
    same(first.state(), expected)
    same(CalibrationMetrics.from_state(first.state()).state(), expected)


@few
@given(SCORES, ANOMALIES, st.data())
def test_pixel_metrics_are_those_of_the_ranks(score, label, data):
    """Any strictly increasing map, not only smooth ones, changes thresholds alone."""
    assume({0, 1} <= set(np.unique(label)))
    steps = data.draw(hnp.arrays(np.int64, 9, elements=st.integers(1, 10_000)))
    values = (np.cumsum(steps) - 20_000).astype(np.float32)
    mapped = values[np.searchsorted(np.arange(-4, 5) / 4, score)]
    found = []
    for one in (score, mapped):
        metrics = PixelMetrics(precision="float32")
        metrics.update(one, label)
        found.append(metrics.compute())
    for key in ("AP", "AUROC", "FPR95", "best_f1"):
        assert found[0][key] == found[1][key]
    at = np.searchsorted(np.arange(-4, 5) / 4, found[0]["best_f1_threshold"])
    assert found[1]["best_f1_threshold"] == values[at]
