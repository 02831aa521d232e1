"""Pixel metrics: order, shards, saved states, precision, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gmm_anomaly.metrics import PROTOCOLS, PixelMetrics

ROOT = Path(__file__).parents[2]


def frames(count: int = 7, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
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


def fill(metrics: PixelMetrics, data: list) -> PixelMetrics:
    for score, label in data:
        metrics.update(score, label)
    return metrics


def assert_same_state(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[key].dtype and value.tobytes() == other[key].tobytes(), key
        else:
            assert value == other[key], key


# 100 different scores is far fewer than the frames have, 100 000 far more than they have pixels.
VARIANTS = [
    (protocol, precision, limit)
    for protocol in PROTOCOLS
    for precision in ("float32", "float16")
    for limit in (100, 2000, 100_000)
]


@pytest.mark.parametrize("protocol, precision, limit", VARIANTS)
def test_state_depends_only_on_the_pixels(protocol, precision, limit, tmp_path):
    data = frames()

    def new() -> PixelMetrics:
        return PixelMetrics(protocol, precision, max_distinct=limit)

    whole = fill(new(), data)
    expected = whole.state()
    numbers = str(whole.compute())  # as text, so that NaN equals NaN

    assert_same_state(fill(new(), data[::-1]).state(), expected)
    for shards in ([data[:1], data[1:]], [data[4:], data[2:4], data[:2]], [[], data[3:], [], data[:3]]):
        joined = new()
        for shard in shards:
            joined.merge(fill(new(), shard))
        assert_same_state(joined.state(), expected)
        assert str(joined.compute()) == numbers

    np.savez(tmp_path / "state.npz", **expected)
    with np.load(tmp_path / "state.npz") as loaded:  # without pickled objects
        again = PixelMetrics.from_state(loaded)
    assert_same_state(again.state(), expected)
    assert str(again.compute()) == numbers
    resumed = PixelMetrics.from_state(pickle.loads(pickle.dumps(fill(new(), data[:3]).state())))
    assert_same_state(fill(resumed, data[3:]).state(), expected)


@pytest.mark.parametrize("limit", [100, 3000, 100_000])
@pytest.mark.parametrize("protocol", ["pooled", "smiyc", "per_image"])
def test_working_in_small_blocks_changes_nothing(protocol, limit, monkeypatch):
    data = frames()
    whole = fill(PixelMetrics(protocol, max_distinct=limit), data)
    expected, numbers, curve = whole.state(), str(whole.compute()), whole.curve(50)
    monkeypatch.setattr("gmm_anomaly.metrics.runs._BLOCK", 5)
    monkeypatch.setattr("gmm_anomaly.metrics.sorted_scores._BLOCK", 3)
    monkeypatch.setattr("gmm_anomaly.metrics.binned_counts._CHUNK", 7)
    monkeypatch.setattr("gmm_anomaly.metrics.score_blocks.BLOCK", 11)
    parts = fill(PixelMetrics(protocol, max_distinct=limit), data)
    assert str(parts.compute()) == numbers
    assert all(np.array_equal(curve[key], values) for key, values in parts.curve(50).items())
    assert_same_state(parts.state(), expected)


def test_merge_leaves_the_other_alone_and_computing_changes_nothing():
    data = frames()
    one, other = fill(PixelMetrics(), data[:3]), fill(PixelMetrics(), data[3:])
    before = other.state()
    one.compute()
    one.curve()
    one.merge(other)
    assert_same_state(other.state(), before)
    assert_same_state(one.state(), fill(PixelMetrics(), data).state())


def test_images_after_a_computation_count_like_any_others():
    data = frames()
    metrics = fill(PixelMetrics(), data[:4])
    metrics.compute()
    fill(metrics, data[4:])
    assert str(metrics.compute()) == str(fill(PixelMetrics(), data).compute())


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_float16_scores_give_the_same_numbers_in_both_precisions(protocol):
    data = [(score.astype(np.float16), label) for score, label in frames()]
    half = fill(PixelMetrics(protocol, "float16"), data).compute()
    single = fill(PixelMetrics(protocol, "float32"), data).compute()
    del half["precision"], single["precision"]
    assert half == pytest.approx(single, abs=1e-12, nan_ok=True)


def test_zeros_of_both_signs_tie():
    for precision in ("float16", "float32"):
        metrics = PixelMetrics("pooled", precision)
        metrics.update([[-0.0, 0.0]], [[1, 0]])
        metrics.update([[-0.0, 0.0]], [[0, 1]])
        assert metrics.compute()["AUROC"] == 0.5


def test_infinities_are_the_extreme_values():
    score = [[np.inf, 1.0, 0.0, -np.inf]]
    label = [[1, 0, 1, 0]]
    ranks = [[3.0, 1.0, 0.0, -3.0]]
    for protocol in ("pooled", "per_image", "smiyc"):
        infinite, finite = PixelMetrics(protocol), PixelMetrics(protocol)
        infinite.update(score, label)
        finite.update(ranks, label)
        for key in ("AP", "AUROC", "FPR95", "best_f1"):
            assert infinite.compute()[key] == finite.compute()[key]


def test_scores_beyond_float16_are_reported():
    metrics = PixelMetrics("pooled", "float16")
    metrics.update([[1e6, 2e6, -np.inf, 3.0]], [[1, 0, 0, 0]])
    found = metrics.compute()
    assert found["AUROC"] == pytest.approx((2 + 0.5) / 3)  # both large scores are one
    assert found["note"] == "2 scores beyond float16 became infinite"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, np.uint8, np.int64])
def test_numpy_dtypes(dtype):
    metrics = PixelMetrics()
    metrics.update(np.array([[4, 3, 2, 1]], dtype), np.array([[1, 0, 1, 0]]))
    assert metrics.compute()["AP"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.bool_])
def test_label_dtypes_views_and_tensors(dtype):
    score, label = frames(1)[0]
    label = np.where(label == 255, 0, label)
    expected = fill(PixelMetrics(), [(score, label)]).state()
    given = torch.from_numpy(score)
    assert_same_state(fill(PixelMetrics(), [(given, label.astype(dtype))]).state(), expected)
    flipped = (np.asfortranarray(score)[:, ::-1], label.astype(dtype)[:, ::-1])
    assert_same_state(fill(PixelMetrics(), [flipped]).state(), expected)
    half = score.astype(np.float16)
    expected = fill(PixelMetrics("smiyc", "float16"), [(half, label)]).state()
    got = fill(PixelMetrics("smiyc", "float16"), [(half[::-1], label.astype(dtype)[::-1])]).state()
    assert_same_state(got, expected)


def test_inputs_are_left_as_they_were():
    score, label = frames(1)[0]
    label[:] = 0
    kept = score.copy()
    for protocol in PROTOCOLS:
        fill(PixelMetrics(protocol), [(score, label)]).compute()
    assert np.array_equal(score, kept)


def test_what_cannot_be_counted_is_named_and_changes_nothing():
    score, label = np.zeros((2, 3)), np.zeros((2, 3), np.uint8)
    metrics = fill(PixelMetrics(), frames(2))
    before = metrics.state()
    for dtype in (np.float16, np.float32, np.float64):
        bad = score.astype(dtype)
        bad[1, 2] = np.nan
        with pytest.raises(ValueError, match="image 'street_7': 1 of 6 scores are NaN"):
            metrics.update(bad, label, name="street_7")
    with pytest.raises(ValueError, match="image number 3: labels must be .* found also 2, 7;"):
        metrics.update(score, [[0, 1, 2], [7, 2, 255]])
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(3, 2\)"):
        metrics.update(score, label.T)
    with pytest.raises(TypeError, match="label must be an array of integers or booleans, found float64"):
        metrics.update(score, score)
    with pytest.raises(TypeError, match="found complex128"):
        metrics.update(score * 1j, label)
    assert_same_state(metrics.state(), before)


def test_settings_that_do_not_exist_or_differ_are_named():
    with pytest.raises(ValueError, match="protocol must be one of pooled, .* found 'mean'"):
        PixelMetrics("mean")
    with pytest.raises(ValueError, match="precision must be one of float32, float16, found 'float64'"):
        PixelMetrics(precision="float64")
    with pytest.raises(ValueError, match="max_distinct must be at least 1, found 0"):
        PixelMetrics(max_distinct=0)
    with pytest.raises(ValueError, match="rule must be one of first, .* found 'last'"):
        PixelMetrics().fpr("last")
    with pytest.raises(ValueError, match="precision 'float32' and 'float16'"):
        PixelMetrics().merge(PixelMetrics(precision="float16"))
    with pytest.raises(ValueError, match="expected a state of PixelMetrics"):
        PixelMetrics.from_state({**PixelMetrics().state(), "metric": "ComponentMetrics"})
    incomplete = PixelMetrics().state()
    del incomplete["void"]
    with pytest.raises(ValueError, match="the state lacks 'void'"):
        PixelMetrics.from_state(incomplete)
    with pytest.raises(ValueError, match="points must be at least 4"):
        PixelMetrics().curve(3)


def test_memory_does_not_grow_with_images():
    """The state of more and more images with ever new scores stays within the bins."""
    rng = np.random.default_rng(0)
    metrics = PixelMetrics(max_distinct=500)
    sizes = []
    for _ in range(30):
        label = (rng.random((40, 50)) < 0.1).astype(np.uint8)
        metrics.update(rng.uniform(1.0, 1.001, label.shape).astype(np.float32), label)
        sizes.append(sum(np.asarray(value).nbytes for value in metrics.state().values()))
    assert metrics.compute()["exact"] is False
    # 1.0 to 1.001 are 8 389 float32 numbers, so at most 10 bins.
    assert len(metrics.state()["bins"]) <= 10 and sizes[-1] <= sizes[3]


def test_a_few_different_scores_stay_exact_however_many_pixels():
    metrics = PixelMetrics(max_distinct=50)
    label = np.arange(400).reshape(20, 20) % 7 == 0
    for step in range(10):
        metrics.update(np.roll(np.arange(400), step).reshape(20, 20) % 20, label)
    found = metrics.compute()
    assert found["exact"] and found["anomaly_pixels"] == 10 * label.sum()


def test_importing_the_metrics_needs_numpy_and_opencv_only():
    code = (
        "import sys\n"
        "for name in ('torch', 'detectron2', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'fvcore'):\n"
        "    sys.modules[name] = None\n"
        "import gmm_anomaly.metrics\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
