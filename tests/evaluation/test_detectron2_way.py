"""Scripts that somebody else wrote with Detectron2's own parts get the numbers of our command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model

from gmm_anomaly.engine import build_config, build_evaluator, evaluate
from gmm_anomaly.evaluation import ClosedSetEvaluator


@pytest.fixture
def cfg(anomaly_tree, closed_tree, tmp_path):
    """A tiny model and our data sets."""
    return build_config("", [
        "MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NAME", "softmax", "MODEL.CLASSIFIER.NUM_CLASSES", 4,
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet",
        "MODEL.DECODER.CHANNELS", 16,
        "DATASETS.TEST", [closed_tree.name, anomaly_tree.name], "TEST.SCORES", ["msp", "energy"],
        "TEST.POSTPROCESS", ["gaussian_smoothing"], "TEST.COMPONENT_TRACK", "obstacle",
        "TEST.NUM_VISUALIZATIONS", 0, "INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", 0,
        "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "run"),
    ])  # fmt: skip


@pytest.fixture
def by_hand(closed_tree, registered, tmp_path) -> str:
    """The closed set anew, without this project's functions: no image ids, one folder for each image, and 7
    for what is ignored."""
    name, records = registered("by_hand"), []
    for number, one in enumerate(closed_tree.image_ids):
        folder = tmp_path / "by_hand" / str(number)
        folder.mkdir(parents=True)
        shutil.copy(closed_tree.root / "images" / f"{one}.png", folder / "image.png")
        label = closed_tree.labels[one]
        cv2.imwrite(str(folder / "label.png"), np.where(label == 255, 7, label).astype(np.uint8))
        records.append(
            {"file_name": str(folder / "image.png"), "sem_seg_file_name": str(folder / "label.png")}
        )
    DatasetCatalog.register(name, lambda: records)
    classes = list(MetadataCatalog.get(closed_tree.name).stuff_classes)
    MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=7, evaluator_type="sem_seg")
    return name


def plain(results) -> dict:
    return json.loads(json.dumps(results))


def test_default_trainer_gives_our_numbers(cfg, by_hand):
    torch.manual_seed(0)
    model = build_model(cfg)

    class Theirs(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return build_evaluator(cfg, dataset_name)

    for training in (True, False):
        ours = evaluate(cfg, model.train(training))
        assert model.training == training
    np.testing.assert_equal(plain(Theirs.test(cfg, model)), plain(ours))  # Detectron2's loader and mapper
    cfg.defrost()
    cfg.DATASETS.TEST = [*cfg.DATASETS.TEST, by_hand]
    closed, anomaly = ours
    evaluators = [build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
    for found in (Theirs.test(cfg, model, evaluators), evaluate(cfg, model)):
        np.testing.assert_equal(plain(found), plain(ours | {by_hand: ours[closed]}))

    scores = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())["datasets"][anomaly]["anomaly"]
    assert list(scores) == ["msp", "energy", "msp+gaussian_smoothing", "energy+gaussian_smoothing"]
    for score, numbers in scores.items():
        assert numbers["AP"] == ours[anomaly][f"anomaly/pooled/{score}"]["AP"]


def test_a_loader_of_ones_own(cfg, by_hand, tmp_path):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    loader = []
    for record in DatasetCatalog.get(by_hand):
        image = cv2.imread(record["file_name"])[..., ::-1].transpose(2, 0, 1).copy()
        loader.append([{"file_name": record["file_name"], "image": torch.from_numpy(image)}])
    evaluators = DatasetEvaluators([ClosedSetEvaluator(by_hand, output_dir=tmp_path, num_visualizations=9)])
    found = inference_on_dataset(model, loader, evaluators)
    np.testing.assert_equal(plain(found), plain(evaluate(cfg, model)[cfg.DATASETS.TEST[0]]))
    drawn = sorted(path.name for path in (tmp_path / "visualizations" / by_hand).iterdir())
    assert drawn == [f"{number}__image.png" for number in range(5)]
