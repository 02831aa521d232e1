"""Pixel metrics against the numbers of the benchmarks' own code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gmm_anomaly.metrics import PixelMetrics

DATA = Path(__file__).parents[1] / "data"
FISHYSCAPES = json.loads((DATA / "fishyscapes_pixel.json").read_text())
SMIYC = json.loads((DATA / "smiyc_components.json").read_text())
PANS = json.loads((DATA / "pans_streethazards.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    """By benchmark."""
    names = {"fishyscapes": "fishyscapes_pixel", "smiyc": "smiyc_components", "pans": "pans_streethazards"}
    return {name: dict(np.load(DATA / f"{file}.npz")) for name, file in names.items()}


def fishyscapes_case(name: str, arrays: dict) -> tuple[np.ndarray, np.ndarray]:
    if name == "literal_tiny":
        labels, scores = (np.array(FISHYSCAPES["literal"][key]) for key in ("labels", "scores"))
    else:
        stored = "continuous" if name == "continuous_pts200" else name
        labels, scores = arrays[f"{stored}__labels"], arrays[f"{stored}__scores"]
    return np.where((labels == 0) | (labels == 1), labels, 255), scores


@pytest.mark.parametrize("protocol", ["fishyscapes", "pooled"])
@pytest.mark.parametrize("name", sorted(FISHYSCAPES["cases"]))
def test_fishyscapes_numbers(name, protocol, arrays):
    expected = FISHYSCAPES["cases"][name]
    metrics = PixelMetrics(protocol, "float32" if protocol == "pooled" else None)
    for label, score in zip(*fishyscapes_case(name, arrays["fishyscapes"]), strict=True):
        metrics.update(score, label)
    found = metrics.compute()
    assert found["exact"] and found["protocol"] == protocol
    assert [found["anomaly_pixels"], found["known_pixels"]] == [expected["n_pos"], expected["n_neg"]]
    for key in ("AP", "AUROC", "FPR95"):
        assert found[key] == pytest.approx(expected[key], abs=1e-9)
    others = expected["other_repos"]
    rules = {
        "rba": "RbA_and_DenseHybrid_FPR_first_TPR_above_0_95_strict",
        "maskomaly": "Maskomaly_FPR_first_TPR_above_0_90_strict",
        "nearest": "PAnS_FPR95_nearest",
    }
    for rule, key in rules.items():
        assert metrics.fpr(rule) == pytest.approx(others[key], abs=1e-9)


SMIYC_FIELDS = {
    "AP": "area_PRC",
    "AUROC": "area_ROC",
    "FPR95": "tpr95_fpr",
    "best_f1": "best_f1",
    "best_f1_threshold": "best_f1_threshold",
}


def smiyc_score(arrays: dict, frame: int, kind: str) -> np.ndarray:
    score = arrays[f"score_{frame:02d}"]
    if "float16" in kind:
        return score.astype(np.float16)
    if "float32" in kind or kind.startswith("medium"):
        return score.astype(np.float32)
    if kind.startswith("logscale"):
        return (score.astype(np.float32) * 40 - 20).astype(np.float16)
    return score


def check_smiyc(found: dict, expected: dict, ap_tolerance: float) -> None:
    for ours, theirs in SMIYC_FIELDS.items():
        tolerance = ap_tolerance if ours == "AP" else 1e-6
        assert found[ours] == pytest.approx(float(expected[theirs]), abs=tolerance, nan_ok=True), ours


@pytest.mark.parametrize("kind", sorted(SMIYC["pixel"]))
def test_smiyc_sets(kind, arrays):
    expected = SMIYC["pixel"][kind]
    metrics = PixelMetrics("smiyc", "float16" if "float16" in kind else "float32")
    for frame in expected["ids"]:
        metrics.update(smiyc_score(arrays["smiyc"], frame, kind), arrays["smiyc"][f"label_{frame:02d}"])
    found = metrics.compute()
    # The reference's AP depends on the order of frames that share the top score (by up to 2.2e-4).
    check_smiyc(found, expected["PixBinaryClass"], ap_tolerance=3e-4)
    merged_ties = expected["PixBinaryClass"].get("context_area_PRC_if_tied_thresholds_were_merged")
    if merged_ties is not None:
        assert found["AP"] == pytest.approx(float(merged_ties), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("kind", ["all20_as_float32", "medium_10_11_14_16_17"])
def test_smiyc_uniform_sets(kind, arrays):
    expected = SMIYC["pixel"][kind]
    metrics = PixelMetrics("smiyc_uniform")
    for frame in expected["ids"]:
        metrics.update(smiyc_score(arrays["smiyc"], frame, kind), arrays["smiyc"][f"label_{frame:02d}"])
    check_smiyc(metrics.compute(), expected["PixBinaryClass-uniThr"], ap_tolerance=1e-6)


@pytest.mark.parametrize("frame", sorted(SMIYC["pixel_single_frame"], key=int))
def test_smiyc_single_frames(frame, arrays):
    score = arrays["smiyc"][f"score_{int(frame):02d}"].astype(np.float32)
    for protocol, key in (("smiyc", "PixBinaryClass"), ("smiyc_uniform", "PixBinaryClass-uniThr")):
        metrics = PixelMetrics(protocol)
        metrics.update(score, arrays["smiyc"][f"label_{int(frame):02d}"])
        check_smiyc(metrics.compute(), SMIYC["pixel_single_frame"][frame][key], ap_tolerance=1e-6)


def test_scores_outside_the_bins_of_smiyc_uniform_stay_in_the_totals(arrays):
    kind = "logscale_9_10_14_16_f16"
    expected, outside = SMIYC["pixel"][kind], 0
    metrics = PixelMetrics("smiyc_uniform")
    for frame in expected["ids"]:
        score, label = smiyc_score(arrays["smiyc"], frame, kind), arrays["smiyc"][f"label_{frame:02d}"]
        metrics.update(score, label)
        outside += int((((score < -0.01) | (score > 1.01)) & (label != 255)).sum())
    found = metrics.compute()
    # Everything is predicted there; the reference calls that threshold its highest one.
    assert found.pop("best_f1_threshold") < -0.01
    for ours, theirs in SMIYC_FIELDS.items():
        if ours in found:
            assert found[ours] == pytest.approx(expected["PixBinaryClass-uniThr"][theirs], abs=1e-6), ours
    assert f"{outside} scores outside" in found["note"]


@pytest.mark.parametrize("name", sorted(PANS["datasets"]))
def test_per_image_means(name, arrays):
    expected = PANS["datasets"][name]
    metrics = PixelMetrics("per_image")
    for image in expected["ids"]:
        anomaly = arrays["pans"]["labels"][image] >= 13  # PAnS: also a wrapped 255; nothing is ignored
        metrics.update(1 - arrays["pans"]["conf"][image], anomaly)
    found = metrics.compute()
    assert found["images_used"] == expected["images_used_for_anomaly_metrics"]
    for ours, theirs in (("AP", "AUPR"), ("AUROC", "AUROC"), ("FPR95", "FPR95")):
        assert 100 * found[ours] == pytest.approx(expected[theirs], abs=1e-9)
    assert metrics.fpr("nearest") == found["FPR95"]
    assert (found["note"] is None) == (found["images_used"] > 0)


@pytest.mark.parametrize("name", sorted(PANS["literal_compute_as_metrics"]))
def test_per_image_literal_cases(name):
    case = PANS["literal_compute_as_metrics"][name]
    metrics = PixelMetrics("per_image")
    metrics.update([case["pos"] + case["neg"]], [[1] * len(case["pos"]) + [0] * len(case["neg"])])
    found = metrics.compute()
    for ours, theirs in (("AP", "AUPR"), ("AUROC", "AUROC"), ("FPR95", "FPR95")):
        assert found[ours] == pytest.approx(case[theirs], abs=1e-9)


@pytest.mark.parametrize(
    "protocol, expected",
    [
        ("pooled", (5 / 6, 11 / 12, 1 / 6, 0.8, 0.2)),
        ("smiyc", (5 / 6, 11 / 12, 1 / 6, 0.8, 0.2)),
        ("per_image", (1.0, 1.0, 0.0, 0.8, 0.2)),
    ],
)
def test_two_frames_pooled_and_per_image(protocol, expected):
    metrics = PixelMetrics(protocol)
    metrics.update([[0.9, 0.8, 0.1, 0.1]], [[1, 0, 0, 0]])
    metrics.update([[0.2, 0.1, 0.05, 0.05]], [[1, 0, 0, 0]])
    found = metrics.compute()
    keys = ("AP", "AUROC", "FPR95", "best_f1", "best_f1_threshold")
    assert [found[key] for key in keys] == pytest.approx(expected)


def test_tpr_of_exactly_95_percent():
    positives = 10 + 0.05 * np.arange(20)
    negatives = [10.02, 9.5, *[0.0] * 8]
    metrics = PixelMetrics("fishyscapes")
    metrics.update([[*positives, *negatives]], [[1] * 20 + [0] * 10])
    found = metrics.compute()
    assert found["AP"] == pytest.approx(0.997619, abs=1e-6)
    assert found["AUROC"] == pytest.approx(0.995)
    assert found["FPR95"] == 0.0
    assert metrics.fpr("nearest") == 0.1  # the plateau at 0.95 ends below the known pixel at 10.02
    assert metrics.fpr("rba") == 0.1  # 0.95 itself is not above 0.95
    assert metrics.fpr("maskomaly") == 0.0


def test_uncounted_and_one_sided_data_have_defined_results():
    nothing = PixelMetrics("pooled").compute()
    assert all(math.isnan(nothing[key]) for key in ("AP", "AUROC", "FPR95", "best_f1", "best_f1_threshold"))
    assert "no valid pixel" in nothing["note"]
    for protocol in ("pooled", "fishyscapes", "smiyc", "smiyc_uniform"):
        for precision in ("float32", "float16"):
            known, anomalous, void = (PixelMetrics(protocol, precision) for _ in range(3))
            known.update([[0.25, 0.5]], [[0, 0]])
            anomalous.update([[0.25, 0.5]], [[1, 1]])
            void.update([[0.25, 0.5]], [[255, 255]])
            found = known.compute()
            assert math.isnan(found["AP"]) and math.isnan(found["AUROC"])
            assert (found["FPR95"], found["best_f1"]) == (0.0, 0.0) and "no anomalous pixel" in found["note"]
            found = anomalous.compute()
            assert math.isnan(found["FPR95"]) and math.isnan(found["AUROC"])
            assert (found["AP"], found["best_f1"]) == (1.0, 1.0) and "no known pixel" in found["note"]
            found = void.compute()
            assert math.isnan(found["AP"]) and (found["images"], found["void_pixels"]) == (1, 2)
            for metrics in (known, anomalous, void):
                assert len(metrics.curve()["threshold"]) >= 1
