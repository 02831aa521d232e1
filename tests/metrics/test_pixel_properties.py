"""Properties of the pixel metrics on generated scores, against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from gmm_anomaly.metrics import PixelMetrics

# A busy machine is not a fault of the metrics.
few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TIED = st.integers(-4, 4).map(lambda step: step / 4)
ANY_FLOAT = st.floats(width=32, allow_nan=False)


@st.composite
def scored_pixels(draw, scores=TIED, both_kinds=True):
    """(n,) float32 scores and labels 0 and 1."""
    n = draw(st.integers(2, 40))
    score = draw(hnp.arrays(np.float32, n, elements=scores))
    label = draw(hnp.arrays(np.uint8, n, elements=st.integers(0, 1)))
    if both_kinds:
        assume(0 < label.sum() < n)
    return score, label


def counted(score, label, **settings) -> PixelMetrics:
    metrics = PixelMetrics(**settings)
    metrics.update(score, label)
    return metrics


def numbers(metrics: PixelMetrics) -> list[float]:
    found = metrics.compute()
    return [found[key] for key in ("AP", "AUROC", "FPR95", "best_f1")]


def plain_numbers(score: np.ndarray, label: np.ndarray) -> list[float]:
    """The same by scikit-learn and by trying every threshold."""
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    f1 = [
        2 * hits / ((score >= threshold).sum() + label.sum())
        for threshold in np.unique(score)
        for hits in [((score >= threshold) & (label == 1)).sum()]
    ]
    first = fpr[np.argmax(tpr >= 0.95)]
    return [average_precision_score(label, score), roc_auc_score(label, score), first, max(f1)]


@few
@given(scored_pixels(st.floats(-(2.0**100), 2.0**100, width=32)), st.booleans())
def test_any_finite_scores_agree_with_scikit_learn(pixels, wide):
    score, label = pixels[0] * np.float64(1e200 if wide else 1), pixels[1]
    metrics = counted(score, label, precision=None)
    assert numbers(metrics) == pytest.approx(plain_numbers(score, label), abs=1e-12)
    assert metrics.compute()["precision"] == "float64"


@few
@given(scored_pixels(), st.sampled_from(["float32", "float16"]), st.sampled_from([3, 2**25]))
def test_tied_scores_agree_with_scikit_learn(pixels, precision, limit):
    metrics = counted(*pixels, precision=precision, max_distinct=limit)
    assert metrics.compute()["exact"]
    assert numbers(metrics) == pytest.approx(plain_numbers(*pixels), abs=1e-12)


@st.composite
def crowded_pixels(draw):
    """Scores so close that many share a bin of 1024 neighbouring float32 numbers, in a few clusters."""
    score, label = draw(scored_pixels(st.sampled_from([-2.0, 0.0, 1.0, 3.0])))
    furthest = draw(st.sampled_from([0, 2, 1500]))
    steps = draw(hnp.arrays(np.int32, len(score), elements=st.integers(0, furthest)))
    moved = (score.view(np.int32) + np.where(score == 0, 0, steps)).view(np.float32)
    return moved, label


@settings(few, max_examples=80)
@given(crowded_pixels(), st.integers(1, 3))
def test_intervals_hold_the_exact_numbers(pixels, shards):
    score, label = pixels
    binned = PixelMetrics(max_distinct=1)
    for part in np.array_split(np.arange(len(score)), shards):
        binned.update(score[part], label[part])
    exact, found = counted(score, label).compute(), binned.compute()
    assume(len(np.unique(score)) > 1)
    for key in ("AP", "AUROC", "FPR95"):
        low, high = found.get(f"{key}_interval", (found[key], found[key]))
        assert 0 <= low <= high <= 1
        assert low - 1e-12 <= exact[key] <= high + 1e-12
        assert low - 1e-12 <= found[key] <= high + 1e-12
    assert found["best_f1"] <= exact["best_f1"] + 1e-12
    predicted = score >= found["best_f1_threshold"]
    hits = int((predicted & (label == 1)).sum())
    assert found["best_f1"] == pytest.approx(2 * hits / (predicted.sum() + label.sum()))
    if found["exact"]:
        assert found["AP"] == pytest.approx(exact["AP"])


def test_bins_of_a_realistic_score_are_narrow():
    rng = np.random.default_rng(0)
    label = (rng.random(300_000) < 0.05).astype(np.uint8)
    score = (-58 + 8 * rng.normal(size=label.size) + 10 * label).astype(np.float32)
    found = counted(score, label, max_distinct=1000).compute()
    exact = counted(score, label).compute()
    for key, width in (("AP", 1e-3), ("AUROC", 1e-3), ("FPR95", 1e-3)):
        low, high = found[f"{key}_interval"]
        assert low <= exact[key] <= high and high - low < width
        assert found[key] == pytest.approx(exact[key], abs=1e-4)


@few
@given(scored_pixels(), st.sampled_from(["float32", "float16"]))
def test_curve_points_are_points_of_the_exact_curves(pixels, precision):
    score, label = pixels
    curve = counted(score, label, precision=precision).curve(points=12)
    assert len(curve["threshold"]) <= 12
    assert [curve[key][0] for key in ("threshold", "precision", "recall", "fpr")] == [np.inf, 1, 0, 0]
    assert [curve[key][-1] for key in ("threshold", "recall", "fpr")] == [score.min(), 1, 1]
    assert np.all(np.diff(curve["threshold"]) < 0)
    precision_all, recall_all, thresholds = precision_recall_curve(label, score)
    at = np.searchsorted(thresholds, curve["threshold"][1:])
    assert curve["precision"][1:] == pytest.approx(precision_all[at])
    assert curve["recall"][1:] == pytest.approx(recall_all[at])
    known = np.sort(score[label == 0])
    above = len(known) - np.searchsorted(known, curve["threshold"][1:])
    assert curve["fpr"][1:] == pytest.approx(above / len(known))
