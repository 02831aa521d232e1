"""AnomalyEvaluator against scikit-learn on the pooled pixels, what it draws, and what it refuses."""

from __future__ import annotations

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict, print_csv_format
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from gmm_anomaly.data import register_anomaly_dataset
from gmm_anomaly.evaluation import AnomalyEvaluator
from gmm_anomaly.metrics import ComponentMetrics, PixelMetrics
from gmm_anomaly.metrics.pixel import frame_average_precision


def feed(evaluator, tree, scores, image_ids=None, batch=2):
    ids = image_ids or tree.image_ids
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        outputs = [
            {"anomaly_scores": {name: torch.as_tensor(maps[one]) for name, maps in scores.items()}}
            for one in part
        ]
        evaluator.process(tree.inputs(*part), outputs)
    return evaluator


def valid(tree, score, image_ids):
    label = np.concatenate([tree.labels[one].ravel() for one in image_ids])
    values = np.concatenate([score[one].ravel() for one in image_ids])
    return label[label != 255], values[label != 255]


def test_numbers_equal_scikit_learn_on_the_pooled_pixels(anomaly_tree, scores):
    results = feed(AnomalyEvaluator(anomaly_tree.name, ["good", "bad"]), anomaly_tree, scores).evaluate()
    assert list(results) == ["anomaly/pooled/good", "anomaly/pooled/bad"]
    for name, maps in scores.items():
        truth, score = valid(anomaly_tree, maps, anomaly_tree.image_ids)
        false, true, _ = roc_curve(truth, score, drop_intermediate=False)
        found = results[f"anomaly/pooled/{name}"]
        assert found["AP"] == pytest.approx(average_precision_score(truth, score), abs=1e-12)
        assert found["AUROC"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert found["FPR95"] == pytest.approx(false[np.searchsorted(true, 0.95)], abs=1e-12)
        predicted = score >= found["best_f1_threshold"]
        f1 = 2 * (predicted & (truth == 1)).sum() / (predicted.sum() + truth.sum())
        assert found["best_f1"] == pytest.approx(f1, abs=1e-12)
        assert found["images"] == 5
        assert found.details["protocol"] == "pooled"


def test_results_depend_neither_on_order_nor_batches_nor_earlier_rounds(anomaly_tree, scores):
    options = {"component_track": "obstacle", "protocol": "smiyc"}
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"], **options)
    first = feed(evaluator, anomaly_tree, scores, batch=1).evaluate()
    evaluator.reset()
    assert feed(evaluator, anomaly_tree, scores, anomaly_tree.image_ids[::-1], 5).evaluate() == first


def test_every_logger_of_detectron2_takes_the_results(anomaly_tree, scores, caplog):
    evaluator = AnomalyEvaluator(
        anomaly_tree.name, ["good"], component_track="obstacle", protocol="fishyscapes"
    )
    results = feed(evaluator, anomaly_tree, scores).evaluate()
    flat = flatten_results_dict({"data": results})
    assert {"data/anomaly/fishyscapes/good/AP", "data/components/obstacle_track/good/F1"} <= set(flat)
    assert all(type(value) in (float, int) for value in flat.values())
    with caplog.at_level(logging.INFO):
        print_csv_format(results)
    assert "anomaly/fishyscapes/good" in caplog.text


@pytest.mark.parametrize(("protocol", "precision"), [("pooled", "float32"), ("smiyc", "float16")])
def test_components_use_the_threshold_of_the_whole_data_set(
    anomaly_tree, scores, protocol, precision, tmp_path
):
    options = {"protocol": protocol, "component_track": "obstacle", "output_dir": tmp_path}
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good", "bad"], **options)
    feed(evaluator, anomaly_tree, scores)
    assert len(list(tmp_path.glob("kept_scores_*/*.npy"))) == 10
    results = evaluator.evaluate()
    assert not list(tmp_path.glob("kept_scores_*"))
    for name, maps in scores.items():
        stored = {one: score.astype(precision) for one, score in maps.items()}
        pixels = PixelMetrics(protocol, precision)
        for one, label in anomaly_tree.labels.items():
            pixels.update(stored[one], label)
        assert results[f"anomaly/{protocol}/{name}"]["AP"] == pixels.compute()["AP"]
        threshold = pixels.compute()["best_f1_threshold"]
        expected = ComponentMetrics.obstacle_track(threshold, inclusive=protocol == "pooled")
        for one, label in anomaly_tree.labels.items():
            expected.update(stored[one], label)
        found, wanted = results[f"components/obstacle_track/{name}"], expected.compute()
        assert wanted["predictions"] > 0
        for key in ("sIoU_gt", "PPV", "F1", "threshold"):
            assert found[key] == wanted[key]
        assert found.details["tp"] == wanted["tp"]


def test_protocol_and_track_come_from_the_data_set(anomaly_tree, scores, registered):
    name, root = registered("obstacles"), anomaly_tree.root
    register_anomaly_dataset(
        name, root / "images", root / "labels", protocol="smiyc", component_track="obstacle"
    )
    results = feed(AnomalyEvaluator(name, ["good"]), anomaly_tree, scores).evaluate()
    assert list(results) == ["anomaly/smiyc/good", "components/obstacle_track/good"]
    assert results["anomaly/smiyc/good"].details["precision"] == "float16"
    evaluator = AnomalyEvaluator(name, ["good"], component_track="none", protocol="pooled")
    results = feed(evaluator, anomaly_tree, scores).evaluate()
    assert list(results) == ["anomaly/pooled/good"]
    assert results["anomaly/pooled/good"].details["precision"] == "float32"


def test_a_map_of_two_levels_has_the_same_pixels_above_the_threshold_in_both_metrics(anomaly_tree):
    perfect = {one: (label == 1).astype(np.uint8) for one, label in anomaly_tree.labels.items()}
    for protocol, found_all in (("pooled", 1), ("fishyscapes", 1), ("per_image", 1), ("smiyc", 0)):
        options = {"protocol": protocol, "component_track": "obstacle"}
        evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"], **options)
        pixels, components = feed(evaluator, anomaly_tree, {"good": perfect}).evaluate().values()
        assert (pixels["best_f1"], pixels["best_f1_threshold"]) == (1, 1)
        assert components["sIoU_gt"] == components["F1"] == found_all
        note = components.details["note"] or ""
        assert ("predicted is score > threshold, as in the benchmark's code" in note) == (protocol == "smiyc")


@pytest.mark.parametrize(
    "form",
    [
        lambda score: 1 - np.exp(-30 - score.astype(np.float64)),
        lambda score: 1e39 * (10 + score.astype(np.float64)),
        lambda score: (2**40 + 100 * score).astype(np.int64),
        lambda score: torch.tensor(2**20 + score.astype(np.float64)),
    ],
)
def test_scores_beyond_float32_keep_their_ranks(anomaly_tree, scores, form):
    maps = {one: form(score) for one, score in scores["good"].items()}
    options = {"protocol": "pooled", "component_track": "obstacle"}
    results = feed(AnomalyEvaluator(anomaly_tree.name, ["good"], **options), anomaly_tree, {"good": maps})
    pixels, components = results.evaluate().values()
    truth, values = valid(anomaly_tree, {one: np.asarray(found) for one, found in maps.items()}, [*maps])
    assert pixels["AP"] == pytest.approx(average_precision_score(truth, values.astype(np.float64)), abs=1e-12)
    assert pixels.details["precision"] == "float64" and components.details["predictions"] > 0


def test_score_maps_are_saved(anomaly_tree, scores, tmp_path):
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good", "bad"], output_dir=tmp_path, save_scores=True)
    feed(evaluator, anomaly_tree, scores).evaluate()
    for name, maps in scores.items():
        folder = tmp_path / "scores" / anomaly_tree.name / name
        assert sorted(path.name for path in folder.iterdir()) == [
            f"{one}.npy" for one in anomaly_tree.image_ids
        ]
        for one in anomaly_tree.image_ids:
            saved = np.load(folder / f"{one}.npy")
            assert saved.dtype == np.float16
            assert np.array_equal(saved, maps[one].astype(np.float16))


def test_overlays_show_the_first_images_of_the_data_set_in_one_colour_range(anomaly_tree, scores, tmp_path):
    evaluator = AnomalyEvaluator(
        anomaly_tree.name, ["good", "bad"], output_dir=tmp_path, num_visualizations=2
    )
    feed(evaluator, anomaly_tree, scores, anomaly_tree.image_ids[::-1]).evaluate()
    folder = tmp_path / "visualizations" / anomaly_tree.name
    assert sorted(path.stem for path in folder.iterdir()) == anomaly_tree.image_ids[:2]
    height, width = anomaly_tree.labels["frame_01"].shape
    picture = cv2.imread(str(folder / "frame_01.png"))
    image = cv2.imread(str(anomaly_tree.root / "images" / "frame_01.png"))
    assert np.array_equal(picture[-height:, :width], image)
    # Anomalies are orange in the second panel, and the brightest pixels of the third one have the highest
    # scores.
    label = anomaly_tree.labels["frame_01"]
    truth = picture[-height:, width + 4 : 2 * width + 4].astype(int)
    assert (truth[label == 1][:, 2] > truth[label == 1][:, 0]).all()
    assert truth[label == 255].max() < 255 * 0.45
    heat = picture[-height:, -width:].astype(int).sum(axis=2)
    score = scores["good"]["frame_01"]
    assert np.corrcoef(heat.ravel(), score.ravel())[0, 1] > 0.9


def written(folder, tree):
    return json.loads((folder / "curves" / f"{tree.name}.json").read_text())


def test_reports_get_points_of_scikit_learns_curves(anomaly_tree, scores, tmp_path):
    evaluator = AnomalyEvaluator(
        anomaly_tree.name, ["good", "bad"], component_track="obstacle", precision="float32",
        output_dir=tmp_path, num_best_worst=1,
    )  # fmt: skip
    results = feed(evaluator, anomaly_tree, scores, anomaly_tree.image_ids[::-1]).evaluate()
    document = written(tmp_path, anomaly_tree)
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
        details = results[f"components/obstacle_track/{name}"].details
        for kind in ("anomalies", "predictions"):
            assert sum(row[kind] for row in found["components_by_size"]) == details[kind] > 0
    frames = document["frames"]
    assert frames["score"] == "good" and list(frames["AP"]) == anomaly_tree.image_ids
    for one, found in frames["AP"].items():
        truth, values = valid(anomaly_tree, scores["good"], [one])
        expected = average_precision_score(truth, values) if truth.any() else None
        assert found == (pytest.approx(expected, rel=1e-6) if expected else None)


def test_best_and_worst_images_are_drawn(anomaly_tree, scores, tmp_path):
    ids = anomaly_tree.image_ids
    wanted = sorted(
        (frame_average_precision(scores["good"][one], anomaly_tree.labels[one]), one) for one in ids[:4]
    )
    for order in (ids, ids[::-1]):
        folder = tmp_path / order[0]
        evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"], output_dir=folder, num_best_worst=1)
        feed(evaluator, anomaly_tree, scores, order)
        assert len(list(folder.glob("kept_scores_*/*.npy"))) == 2
        evaluator.evaluate()
        drawn = sorted(path.stem for path in (folder / "visualizations" / anomaly_tree.name).iterdir())
        assert drawn == sorted([wanted[0][1], wanted[-1][1]])
        assert drawn == written(folder, anomaly_tree)["frames"]["drawn"]


def test_missing_images_are_counted_aloud(anomaly_tree, scores, caplog):
    evaluator = feed(
        AnomalyEvaluator(anomaly_tree.name, ["good"]), anomaly_tree, scores, ["frame_00", "frame_03"]
    )
    results = evaluator.evaluate()
    assert results["anomaly/pooled/good"]["images"] == 2
    assert "only 2 of 5 images" in caplog.text and "frame_01" in caplog.text


def test_outputs_that_cannot_be_counted_are_named(anomaly_tree, scores):
    score = scores["good"]["frame_00"]
    broken = score.copy()
    broken[0, :2] = np.nan
    for image_id, given, names, message in (
        ("frame_00", broken, ["good"], r"score 'good'.*image 'frame_00'.*2 of 391 scores are NaN"),
        ("frame_00", score[:-1], ["good"], r"'frame_00'.*'good' has the size 16 x 23.*label 17 x 23"),
        ("frame_00", score, ["good", "energy"], r"no score 'energy', only good"),
        ("elsewhere", score, ["good"], r"image_id 'elsewhere'.*not in the data set"),
    ):
        evaluator = AnomalyEvaluator(anomaly_tree.name, names)
        with pytest.raises(ValueError, match=message):
            evaluator.process(anomaly_tree.inputs(image_id), [{"anomaly_scores": {"good": given}}])
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"])
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluator.evaluate()
    feed(evaluator, anomaly_tree, scores)
    with pytest.raises(ValueError, match=r"'frame_00' was given twice"):
        feed(evaluator, anomaly_tree, scores, ["frame_00"])


def test_a_label_that_is_read_ahead_and_broken_is_told_with_its_own_frame(anomaly_tree, scores):
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"])
    (anomaly_tree.root / "labels" / "frame_01.png").write_bytes(b"no picture")
    feed(evaluator, anomaly_tree, scores, ["frame_00"])
    with pytest.raises(ValueError, match=r"frame_01\.png"):
        feed(evaluator, anomaly_tree, scores, ["frame_01"])
    with pytest.raises(ValueError, match=r"frame_01\.png"):
        evaluator.records.label(1)


def test_withheld_labels_are_refused_by_name(anomaly_tree, registered):
    name = registered("withheld")
    records = [dict(record) for record in DatasetCatalog.get(anomaly_tree.name)]
    for record in records[2:]:
        del record["sem_seg_file_name"]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(evaluator_type="anomaly")
    with pytest.raises(
        ValueError, match=rf"{name}: the labels of 3 of 5 images are withheld.*gmm-anomaly submit"
    ):
        AnomalyEvaluator(name, ["good"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"component_track": "road"}, "expected 'anomaly', 'obstacle' or 'none', found 'road'"),
        ({"protocol": "mine"}, "protocol must be one of pooled"),
        ({"save_scores": True}, "need output_dir"),
        ({"scores": []}, "at least one score"),
        ({"scores": "good"}, "must be a list"),
    ],
)
def test_bad_arguments_are_named(anomaly_tree, arguments, message):
    with pytest.raises(ValueError, match=message):
        AnomalyEvaluator(anomaly_tree.name, **({"scores": ["good"]} | arguments))


def test_undefined_numbers_are_nan_with_a_note(anomaly_tree, scores, caplog):
    """Only void pixels: no threshold exists, so components are undefined too."""
    for path in (anomaly_tree.root / "labels").iterdir():
        cv2.imwrite(str(path), np.full_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), 255))
    evaluator = AnomalyEvaluator(anomaly_tree.name, ["good"], component_track="obstacle")
    results = feed(evaluator, anomaly_tree, scores).evaluate()
    assert np.isnan(results["anomaly/pooled/good"]["AP"])
    assert np.isnan(results["components/obstacle_track/good"]["sIoU_gt"])
    assert "no valid pixel" in caplog.text
    json.dumps(results["anomaly/pooled/good"].details)
