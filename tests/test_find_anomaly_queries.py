"""Ranking the queries of a mask model: the numbers, the tool, and the config that it writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset, registration
from gmm_anomaly.engine import build_config
from gmm_anomaly.evaluation.query_overlap import (
    QueryOverlap,
    anomaly_region,
    class_region,
    measure_overlap,
    query_iou,
)
from gmm_anomaly.evaluation.query_report import query_table
from gmm_anomaly.evaluation.records import EvaluatedRecords

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[1]
SIZE = 40, 56
QUERIES, CLASSES = 6, 3


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def find():
    return load("find_anomaly_queries", ROOT / "tools" / "find_anomaly_queries.py").main


@pytest.fixture(scope="module")
def train():
    module = load("train_net", ROOT / "train_net.py")
    return lambda arguments: module.main(module.parser().parse_args(arguments))


@pytest.fixture(scope="module")
def labels():
    """Labels of an anomaly set (one image has no anomaly) and of a closed set, by stem."""
    rng = np.random.default_rng(0)
    anomalies = {str(index): rng.choice(np.array([0, 1, 255], np.uint8), SIZE) for index in range(2)}
    anomalies["2"] = np.zeros(SIZE, np.uint8)
    return anomalies, {str(index): rng.integers(0, CLASSES, SIZE, np.uint8) for index in range(2)}


@pytest.fixture(scope="module")
def data_sets(labels, tmp_path_factory):
    """They are registered as ``queries_anomaly`` and ``queries_closed`` while these tests run."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    for kind, by_stem in zip(("anomaly", "closed"), labels, strict=True):
        for folder in ("images", "labels"):
            (root / kind / folder).mkdir(parents=True)
        for stem, label in by_stem.items():
            cv2.imwrite(
                str(root / kind / "images" / f"{stem}.png"), rng.integers(0, 256, (*SIZE, 3), np.uint8)
            )
            cv2.imwrite(str(root / kind / "labels" / f"{stem}.png"), label)
    folders = {
        kind: (str(root / kind / "images"), str(root / kind / "labels")) for kind in ("anomaly", "closed")
    }
    register_anomaly_dataset("queries_anomaly", *folders["anomaly"])
    register_segmentation_dataset("queries_closed", *folders["closed"], classes=("road", "tree", "sky"))
    yield
    for name in ("queries_anomaly", "queries_closed"):
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        registration._SPECS.pop(name)


@pytest.fixture(scope="module")
def config_file(data_sets, tmp_path_factory):
    """A tiny Mask2Former on these data sets."""
    tiny = {
        "MODEL": {
            "META_ARCHITECTURE": "MaskAnomalySegmentor",
            "DEVICE": "cpu",
            "CLASSIFIER": {"NUM_CLASSES": CLASSES},
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "MASK2FORMER": {
                "NUM_QUERIES": QUERIES, "HIDDEN_DIM": 32, "ENCODER_LAYERS": 1, "DECODER_LAYERS": 1,
                "NUM_HEADS": 2, "TRAIN_POINTS": 64,
                "SWIN": {"EMBED_DIM": 12, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 2, 2]},
            },
        },
        "DATASETS": {"TRAIN": ["queries_closed"], "TEST": ["queries_closed", "queries_anomaly"]},
        "INPUT": {"FORMAT": "RGB"},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"OPTIMIZER": "ADAMW", "BASE_LR": 0.001, "IMS_PER_BATCH": 2, "MAX_ITER": 2},
        "TEST": {"SCORES": ["maskomaly", "rba", "mask_void", "msp"], "NUM_VISUALIZATIONS": 1},
        "SEED": 0,
        "VERSION": 2,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


@pytest.fixture(scope="module")
def trained(config_file, train, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train(["--num-gpus", "0", "--config-file", str(config_file), "OUTPUT_DIR", str(output)])
    return output


class Painted(torch.nn.Module):
    """A stand-in for a mask model: its masks are made of the labels, so every IoU is known."""

    def __init__(self, labels: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.labels = labels

    def masks(self, stem: str) -> torch.Tensor:
        label = torch.from_numpy(self.labels[stem])
        rows = torch.arange(SIZE[0])[:, None].expand(SIZE)
        return torch.stack([
            label == 0,                   # everything but the anomalies
            (label == 1) & (rows < 20),   # a part of them
            label != 0,                   # all of them, and void
            torch.zeros(SIZE, dtype=torch.bool),
        ])  # fmt: skip

    def forward(self, batch):
        classes = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 9.0], [0, 9.0, 0, 0], [0, 0, 0, 9.0]])
        masks = [self.masks(item["image_id"]) for item in batch]
        # 0.95 and 0.85: the threshold lies between.
        logits = [torch.where(mask, 2.9444, 1.7346) for mask in masks]
        return [{"mask_logits": mask, "class_logits": classes} for mask in logits]


def brute_force_iou(mask, region, valid):
    """Pixel by pixel; the mean over the images that have the region."""
    both = either = 0
    for covered, wanted, counted in zip(mask.flatten(), region.flatten(), valid.flatten(), strict=True):
        both += bool(counted and covered and wanted)
        either += bool(counted and (covered or wanted))
    return both / either


def test_iou_leaves_void_out():
    generator = np.random.default_rng(3)
    label = generator.choice(np.array([0, 1, 255]), (9, 11))
    probability = generator.random((4, 9, 11))
    logits = torch.from_numpy(np.log(probability / (1 - probability)))
    found = query_iou(logits, torch.from_numpy(label == 1), torch.from_numpy(label != 255), 0.6)
    expected = [brute_force_iou(mask > 0.6, label == 1, label != 255) for mask in probability]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_overlap_is_the_mean_over_images_with_anomalies(labels, data_sets):
    anomalies, _ = labels
    batches = [[{"image_id": stem}] for stem in anomalies]
    model = Painted(anomalies)
    overlap = measure_overlap(model, batches, EvaluatedRecords("queries_anomaly", "anomaly"), anomaly_region)
    assert overlap.images == 2
    for query in range(4):
        each = [
            brute_force_iou(model.masks(stem)[query].numpy(), anomalies[stem] == 1, anomalies[stem] != 255)
            for stem in ("0", "1")
        ]
        assert float(overlap.mean_iou[query]) == pytest.approx(np.mean(each))
    assert float(overlap.mean_iou[2]) == 1 and 0.25 < float(overlap.mean_iou[1]) < 1
    assert overlap.ranking() == [2, 1, 0, 3]
    assert overlap.chosen() == [2, 1]
    table = query_table(overlap, overlap.chosen(), ["road", "tree", "sky"])
    first, second = table.splitlines()[2:4]
    assert "tree 1.00" in first and "no object 1.00" in second and "| x" in second


def test_choice_follows_the_iou_and_the_number_asked_for():
    overlap = QueryOverlap(torch.tensor([0.1, 0.25, 0.0, 0.6]), torch.zeros(4, 2), 1)
    assert overlap.chosen() == [3, 1]
    assert overlap.chosen(at_least=3) == [3, 1, 0]
    assert overlap.chosen(minimum_iou=0.9) == []


def test_a_set_without_the_region_is_named(labels, data_sets):
    records = EvaluatedRecords("queries_anomaly", "anomaly")
    with pytest.raises(ValueError, match="queries_anomaly: none of its 3 images has a pixel of the region"):
        measure_overlap(Painted(labels[0]), [[{"image_id": "2"}]], records, anomaly_region)


def test_regions_of_a_class(labels, data_sets):
    records = EvaluatedRecords("queries_closed", "closed_set")
    label = labels[1]["0"]
    assert np.array_equal(class_region(records, "sky")(label), label == 2)
    with pytest.raises(
        ValueError, match="queries_closed has no class 'street'; its classes are road, tree, sky"
    ):
        class_region(records, "street")


def written_keys(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["MODEL"]["MASK2FORMER"]


def test_training_and_evaluation_by_the_command_line(trained):
    metrics = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert {"loss_class", "loss_mask", "loss_dice"} <= set(metrics[0])
    results = json.loads((trained / "results.json").read_text())["datasets"]
    assert set(results["queries_anomaly"]["anomaly"]) == {"maskomaly", "rba", "mask_void", "msp"}
    assert 0 <= results["queries_closed"]["sem_seg"]["mIoU"] <= 100


def test_tool_writes_a_config_that_evaluates(find, train, trained, config_file, tmp_path, capsys):
    output = tmp_path / "found" / "maskomaly.yaml"
    weights = str(trained / "model_final.pth")
    # The masks of random weights cover nothing at 0.9.
    arguments = [
        "--config-file", str(config_file), "--weights", weights, "--dataset", "queries_anomaly",
        "--road-dataset", "queries_closed", "--at-least", "2", "--mask-threshold", "0.3",
        "--output", str(output), "TEST.NUM_VISUALIZATIONS", "0", "MODEL.MASK2FORMER.TRAIN_POINTS", "32",
    ]  # fmt: skip
    assert find(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "anomalies of 2 images" in printed and "the road of 2 images" in printed
    assert ("No query reaches" in printed) == (not written_keys(output)["ROAD_QUERIES"])
    cfg = build_config(str(output))
    assert len(set(cfg.MODEL.MASK2FORMER.ANOMALY_QUERIES)) >= 2
    assert weights == cfg.MODEL.WEIGHTS and cfg.MODEL.MASK2FORMER.NUM_QUERIES == QUERIES
    # Overrides are kept where they make the model.
    assert cfg.MODEL.MASK2FORMER.TRAIN_POINTS == 32 and cfg.TEST.NUM_VISUALIZATIONS == 1
    assert "labels of queries_anomaly and queries_closed" in output.read_text()
    assert [path.name for path in output.parent.iterdir()] == ["maskomaly.yaml"]
    train(
        ["--num-gpus", "0", "--eval-only", "--config-file", str(output), "OUTPUT_DIR", str(tmp_path / "run")]
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())["datasets"]
    before = json.loads((trained / "results.json").read_text())["datasets"]
    now, then = (found["queries_anomaly"]["anomaly"] for found in (results, before))
    assert now["rba"]["AP"] == pytest.approx(then["rba"]["AP"], abs=1e-6)
    assert now["maskomaly"]["AP"] != then["maskomaly"]["AP"]


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--dataset", "queries_closed"], "needs a data set of evaluator_type 'anomaly'"),
        (["--mask-threshold", "1"], "--mask-threshold: expected a value between 0 and 1, found 1"),
        (["--road-dataset", "queries_closed", "--road-class", "street"], "has no class 'street'"),
        (["--weights", "none.pth"], "MODEL.WEIGHTS: no file none.pth"),
        (
            ["MODEL.META_ARCHITECTURE", "AnomalySegmentor", "TEST.SCORES", "['msp']"],
            "describes no mask model",
        ),
    ],
)
def test_what_a_user_can_get_wrong_is_named(find, trained, config_file, tmp_path, capsys, changed, message):
    arguments = [
        "--config-file", str(config_file), "--weights", str(trained / "model_final.pth"),
        "--dataset", "queries_anomaly", "--output", str(tmp_path / "queries.yaml"),
    ]  # fmt: skip
    assert find([*arguments, *changed]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "queries.yaml").exists()
