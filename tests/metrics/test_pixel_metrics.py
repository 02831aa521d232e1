"""Pixel metrics: memory and precision, what they take, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gmm_anomaly.metrics import PixelMetrics

ROOT = Path(__file__).parents[2]


def fill(metrics: PixelMetrics, data: list) -> PixelMetrics:
    for score, label in data:
        metrics.update(score, label)
    return metrics


def test_zeros_of_both_signs_tie():
    for precision in ("float16", "float32"):
        metrics = PixelMetrics("pooled", precision)
        metrics.update([[-0.0, 0.0]], [[1, 0]])
        metrics.update([[-0.0, 0.0]], [[0, 1]])
        assert metrics.compute()["AUROC"] == 0.5


def test_infinities_are_the_extreme_values():
    label = [[1, 0, 1, 0]]
    for protocol in ("pooled", "per_image", "smiyc"):
        infinite, finite = PixelMetrics(protocol), PixelMetrics(protocol)
        infinite.update([[np.inf, 1.0, 0.0, -np.inf]], label)
        finite.update([[3.0, 1.0, 0.0, -3.0]], label)
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


def test_label_dtypes_views_and_tensors_are_taken_and_left_as_they_were(frames, as_bytes):
    score, label = frames(1)[0]
    label = np.where(label == 255, 0, label)
    kept = score.copy()
    for protocol, precision in (("pooled", "float32"), ("smiyc", "float16"), ("per_image", "float32")):
        given = score.astype(precision)
        expected = as_bytes(fill(PixelMetrics(protocol, precision), [(given, label)]))
        for one in (
            (torch.from_numpy(given), label.astype(np.bool_)),
            (np.asfortranarray(given)[:, ::-1], label.astype(np.uint16)[:, ::-1]),
            (given[::-1], label.astype(np.int64)[::-1]),
        ):
            assert as_bytes(fill(PixelMetrics(protocol, precision), [one])) == expected
    assert np.array_equal(score, kept)


def test_what_cannot_be_counted_is_named_and_changes_nothing(frames, as_bytes):
    score, label = np.zeros((2, 3)), np.zeros((2, 3), np.uint8)
    metrics = fill(PixelMetrics(), frames(2))
    before = as_bytes(metrics)
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
    assert as_bytes(metrics) == before


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
        sizes.append(len(pickle.dumps(metrics)))
    assert metrics.compute()["exact"] is False
    # 1.0 to 1.001 are 8 389 float32 numbers, so at most 10 bins.
    assert len(metrics.counts()) <= 10 and sizes[-1] <= sizes[3] + 100


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_histogram_counts_every_pixel_once(precision):
    rng = np.random.default_rng(3)
    label = (rng.random((90, 110)) < 0.2).astype(np.uint8)
    score = (rng.normal(size=label.shape) * 8 - 70 + 12 * (label == 1)).astype(precision)
    score[0, :5], score[1, :3] = np.inf, -np.inf
    metrics = PixelMetrics("pooled", precision)
    metrics.update(score, label)
    found = metrics.histogram(20)
    edges = found["edges"]
    assert 15 <= len(edges) - 1 <= 20
    for name, value in (("known", 0), ("anomalous", 1)):
        own = score[label == value].astype(np.float64)
        inside = own[np.isfinite(own)]
        assert np.array_equal(found[name], np.histogram(inside, edges)[0])
        outside = [np.sum(own < edges[0]), np.sum(own > edges[-1])]
        assert found[f"{name}_outside"].tolist() == outside and 0 < sum(outside) < 0.03 * own.size
    if precision == "float16":
        # Equally many float16 numbers a bin: the widths are one multiple of their spacing.
        widths = np.diff(edges)
        assert np.all(widths == widths[0]) and widths[0] % np.spacing(np.float16(edges[0])) == 0


def test_histogram_without_finite_scores_or_range():
    metrics = PixelMetrics()
    metrics.update(np.array([[np.inf, -np.inf, np.inf]]), np.array([[0, 0, 1]]))
    found = metrics.histogram(10)
    assert not found["edges"].size and not found["known"].size
    assert found["known_outside"].tolist() == [1, 1] and found["anomalous_outside"].tolist() == [0, 1]
    flat = PixelMetrics()
    flat.update(np.full((1, 4), 7.0), np.array([[0, 0, 0, 1]]))
    found = flat.histogram(10)
    assert found["known"].sum() == 3 and found["anomalous"].sum() == 1
    with pytest.raises(ValueError, match="bins must be at least 1, found 0"):
        flat.histogram(0)


def test_importing_the_metrics_needs_numpy_and_opencv_only():
    code = (
        "import sys\n"
        "for name in ('torch', 'detectron2', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'fvcore'):\n"
        "    sys.modules[name] = None\n"
        "import gmm_anomaly.metrics\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
