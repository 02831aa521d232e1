"""Curves, histograms, AP of single images and components by size, against scikit-learn and hand counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from gmm_anomaly.engine.evaluation import build_evaluator
from gmm_anomaly.evaluation import AnomalyEvaluator
from gmm_anomaly.evaluation.frame_scores import FrameScores, frame_average_precision
from gmm_anomaly.evaluation.kept_scores import KeptScores
from gmm_anomaly.metrics import ComponentMetrics, PixelMetrics
from gmm_anomaly.metrics.component_sizes import ComponentSizes, anomaly_sizes


def feed(evaluator, tree, scores, image_ids):
    for one in image_ids:
        maps = {name: torch.tensor(found[one]) for name, found in scores.items()}
        evaluator.process(tree.inputs(one), [{"anomaly_scores": maps}])
    return evaluator


def written(folder, tree):
    return json.loads((folder / "curves" / f"{tree.name}.json").read_text())


def valid(tree, score, image_ids):
    label = np.concatenate([tree.labels[one].ravel() for one in image_ids])
    values = np.concatenate([score[one].ravel() for one in image_ids])
    return label[label != 255], values[label != 255]


@pytest.fixture
def evaluated(anomaly_tree, scores, tmp_path):
    """The results of an evaluation with an output folder, and the curves it wrote."""
    evaluator = AnomalyEvaluator(
        anomaly_tree.name, ["good", "bad"], component_track="obstacle", precision="float32",
        output_dir=tmp_path, num_best_worst=1,
    )  # fmt: skip
    results = feed(evaluator, anomaly_tree, scores, anomaly_tree.image_ids[::-1]).evaluate()
    return results, written(tmp_path, anomaly_tree)


def test_curve_points_are_points_of_scikit_learns_curves(anomaly_tree, scores, evaluated):
    results, document = evaluated
    assert (document["protocol"], document["track"]) == ("pooled", "obstacle")
    for name, maps in scores.items():
        truth, values = valid(anomaly_tree, maps, anomaly_tree.image_ids)
        found = document["scores"][name]
        precision, recall, _ = precision_recall_curve(truth, values)
        fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
        for points, own in (((recall, precision), "precision"), ((tpr, fpr), "fpr")):
            drawn = np.array([found["curve"]["recall"], found["curve"][own]])[:, 1:]
            assert drawn.shape[1] > 50
            apart = np.abs(drawn[:, :, None] - np.array(points)[:, None]).max(axis=0)
            assert apart.min(axis=1).max() < 1e-6
        assert found["AP"] == pytest.approx(results[f"anomaly/pooled/{name}"]["AP"], rel=1e-6)


def test_image_ap_is_scikit_learns(anomaly_tree, scores, evaluated):
    frames = evaluated[1]["frames"]
    assert frames["score"] == "good" and list(frames["AP"]) == anomaly_tree.image_ids
    for one, found in frames["AP"].items():
        truth, values = valid(anomaly_tree, scores["good"], [one])
        if truth.any():
            assert found == pytest.approx(average_precision_score(truth, values), rel=1e-6)
        else:
            assert found is None


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
    assert not found["edges"].size
    assert found["known_outside"].tolist() == [1, 1] and found["anomalous_outside"].tolist() == [0, 1]
    flat = PixelMetrics()
    flat.update(np.full((1, 4), 7.0), np.array([[0, 0, 0, 1]]))
    found = flat.histogram(10)
    assert found["known"].sum() == 3 and found["anomalous"].sum() == 1
    with pytest.raises(ValueError, match="bins must be at least 1, found 0"):
        flat.histogram(0)


def test_components_by_size_of_a_frame_counted_by_hand():
    """Anomalies of 4, 120 and 450 pixels; the smallest is too small, the middle one is missed, the largest is
    found but for 50 pixels, and 150 known pixels are predicted as well."""
    label = np.zeros((60, 100), np.uint8)
    label[0:2, 0:2] = 1
    label[10:20, 0:12] = 1
    label[30:45, 0:30] = 1
    predicted = np.zeros(label.shape, bool)
    predicted[30:45, 0:30] = True
    predicted.reshape(-1)[np.flatnonzero((label == 1).ravel())[-50:]] = False
    predicted[0:10, 80:95] = True
    metric = ComponentMetrics.obstacle_track(0.5)
    sizes = anomaly_sizes(label, metric.min_anomaly_size)
    assert sizes.tolist() == [120, 450]
    by_size = ComponentSizes()
    by_size.update(metric.update(predicted.astype(np.float32), label), sizes)
    small, large = by_size.compute()
    assert (small["from"], small["to"], large["from"], large["to"]) == (100, 400, 400, 1600)
    assert (small["anomalies"], small["found"], small["sIoU_gt"]) == (1, 0, 0.0)
    assert (large["anomalies"], large["found"], large["sIoU_gt"]) == (1, 1, 400 / 450)
    assert (small["predictions"], small["PPV"], large["predictions"], large["PPV"]) == (1, 0.0, 1, 1.0)
    # Merged with itself everything doubles, whether or not it travelled as a state.
    by_size.merge(
        ComponentSizes.from_state(json.loads(json.dumps(by_size.state(), default=np.ndarray.tolist)))
    )
    assert [row["anomalies"] for row in by_size.compute()] == [2, 2]
    with pytest.raises(ValueError, match="sizes of 2 anomalies, found 1"):
        by_size.update(metric.update(predicted.astype(np.float32), label), sizes[:1])


def test_sizes_in_the_file_hold_all_components(evaluated):
    results, document = evaluated
    for name in ("good", "bad"):
        details = results[f"components/obstacle_track/{name}"].details
        rows = document["scores"][name]["components_by_size"]
        assert sum(row["anomalies"] for row in rows) == details["anomalies"] > 0
        assert sum(row["predictions"] for row in rows) == details["predictions"] > 0


def test_best_and_worst_images_are_drawn(anomaly_tree, scores, tmp_path):
    ids = anomaly_tree.image_ids
    wanted = sorted(
        (frame_average_precision(scores["good"][one], anomaly_tree.labels[one]), one) for one in ids[:4]
    )
    for order in (ids, ids[::-1]):
        folder = tmp_path / order[0]
        # No budget: every map is on disk, and what is not drawn must go from there as well.
        evaluator = AnomalyEvaluator(
            anomaly_tree.name, ["good", "bad"], output_dir=folder, num_best_worst=1, memory_budget=0
        )
        feed(evaluator, anomaly_tree, scores, order)
        assert len(list(folder.glob("kept_scores_*/*.npy"))) == len(evaluator._kept) == 2
        evaluator.evaluate()
        drawn = sorted(path.stem for path in (folder / "visualizations" / anomaly_tree.name).iterdir())
        assert (
            drawn == sorted([wanted[0][1], wanted[-1][1]]) == written(folder, anomaly_tree)["frames"]["drawn"]
        )


def test_extreme_frames_are_those_of_a_sorted_list():
    rng = np.random.default_rng(0)
    values = np.round(rng.random(40), 1)  # with ties
    values[5] = np.nan
    shards = [{}, {}]
    for index, value in enumerate(values):
        shards[index % 2][index] = float(value)
    frames = FrameScores.joined(shards, 3)
    order = sorted(set(range(40)) - {5}, key=lambda index: (values[index], index))
    best = sorted(order, key=lambda index: (-values[index], index))[:3]
    assert frames.extreme == {*order[:3], *best}
    assert list(frames.found) == list(range(40))


def test_without_a_folder_nothing_is_ranked_or_written(anomaly_tree, scores):
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"])
    feed(evaluator, anomaly_tree, scores, anomaly_tree.image_ids)
    assert not evaluator._frames.found and evaluator.evaluate()
    with pytest.raises(ValueError, match="num_best_worst need output_dir"):
        AnomalyEvaluator(anomaly_tree.name, ["good"], num_best_worst=1)


@pytest.mark.parametrize("budget", [2**20, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_kept_scores_are_copies_with_all_bits(budget, dtype, tmp_path):
    rng = np.random.default_rng(0)
    kept, given = KeptScores(budget, tmp_path), {}
    for index, shape in enumerate([(3, 5), (1, 4096), (0, 7), (64, 65)]):
        array = np.asfortranarray(rng.normal(size=shape).astype(dtype))
        array[:1, :1] = np.inf
        kept.put(index, array)
        given[index] = array.copy()
        array[...] = 0
    for index, array in given.items():
        found = kept.get(index)
        assert found.dtype == dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
    found = kept.get(3)
    kept.clear()
    assert found.tobytes() == given[3].tobytes(), "an array in use stays"


def test_kept_scores_forget_one_array(tmp_path):
    kept = KeptScores(budget=8, folder=tmp_path)
    for key in "abc":
        kept.put(key, np.full(2, ord(key), np.float32))
    kept.drop("a")
    kept.drop("b")
    kept.put("d", np.zeros(2, np.float32))  # fits into memory again
    kept.put("e", np.full(2, 5, np.float32))
    assert len(list(tmp_path.glob("*/*.npy"))) == 2 and len(kept) == 3
    assert kept.get("c")[0] == ord("c") and kept.get("e")[0] == 5
    with pytest.raises(KeyError):
        kept.drop("a")


def test_config_key_reaches_the_evaluator(anomaly_tree, tmp_path):
    from gmm_anomaly.engine import build_config

    keys = ["OUTPUT_DIR", str(tmp_path), "TEST.NUM_BEST_WORST", 2, "TEST.SCORES", "['msp']"]
    cfg = build_config("", keys)
    assert build_evaluator(cfg, anomaly_tree.name)._num_best_worst == 2
