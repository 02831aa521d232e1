"""`gmm-anomaly find-queries`: the overlap of queries with anomalies, and the config that is written."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model

from gmm_anomaly.cli import main
from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset
from gmm_anomaly.engine import build_config, evaluate
from gmm_anomaly.evaluation.anomaly_queries import QueryOverlap, measure_overlap, query_table
from gmm_anomaly.evaluation.records import EvaluatedRecords

pytest.importorskip("transformers")

SIZE = 40, 56
LABELS = {"anomaly": [0, 1, 255], "closed": [0, 1, 2]}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Of an anomaly set, whose last image has none, and a closed set, registered as ``queries_<kind>``."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    made = {}
    for kind, values in LABELS.items():
        made[kind] = {str(index): rng.choice(np.array(values, np.uint8), SIZE) for index in range(3)}
        made[kind]["2"][:] = 0
        for folder in ("images", "labels"):
            (root / kind / folder).mkdir(parents=True)
        for stem, label in made[kind].items():
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            cv2.imwrite(str(root / kind / "images" / f"{stem}.png"), image)
            cv2.imwrite(str(root / kind / "labels" / f"{stem}.png"), label)
    folders = {kind: (str(root / kind / "images"), str(root / kind / "labels")) for kind in LABELS}
    register_anomaly_dataset("queries_anomaly", *folders["anomaly"])
    register_segmentation_dataset("queries_closed", *folders["closed"], classes=("road", "tree", "sky"))
    return made


@pytest.fixture(scope="module")
def arguments(labels, tmp_path_factory) -> list[str]:
    """The command on a tiny Mask2Former with random weights, whose masks cover nothing at 0.9."""
    tiny = {
        "MODEL": {
            "META_ARCHITECTURE": "MaskAnomalySegmentor", "DEVICE": "cpu", "CLASSIFIER": {"NUM_CLASSES": 3},
            "MASK2FORMER": {
                "ARCHITECTURE": {
                    "num_queries": 6, "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32,
                    "encoder_layers": 1, "encoder_feedforward_dim": 64, "decoder_layers": 2,
                    "dim_feedforward": 64, "num_attention_heads": 2, "train_num_points": 64,
                    "backbone_config": {
                        "model_type": "swin", "embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 1, 2, 2],
                    },
                },
            },
        },
        "DATASETS": {"TRAIN": ["queries_closed"], "TEST": ["queries_anomaly"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "TEST": {"SCORES": ["maskomaly", "rba"], "NUM_VISUALIZATIONS": 1},
        "VERSION": 2,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    torch.manual_seed(0)
    torch.save({"model": build_model(build_config(str(folder / "tiny.yaml"))).state_dict()}, folder / "w.pth")
    return [
        "--config-file", str(folder / "tiny.yaml"), "--weights", str(folder / "w.pth"),
        "--dataset", "queries_anomaly", "--mask-threshold", "0.3",
    ]  # fmt: skip


class Painted(torch.nn.Module):
    """A stand-in for a mask model: its masks are made of the labels, so every IoU is known."""

    def __init__(self, labels: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.labels = labels

    def masks(self, stem: str) -> np.ndarray:
        label = self.labels[stem]
        upper = np.arange(SIZE[0])[:, None] < 20
        # Known pixels; some anomalies; all of them, and void; nothing.
        return np.stack([label == 0, (label == 1) & upper, label != 0, np.zeros(SIZE, bool)])

    def forward(self, batch):
        classes = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 9.0], [0, 9.0, 0, 0], [0, 0, 0, 9.0]])
        masks = [torch.from_numpy(self.masks(item["image_id"])) for item in batch]
        # 0.95 and 0.85: the threshold lies between.
        return [{"mask_logits": torch.where(m, 2.9444, 1.7346), "class_logits": classes} for m in masks]


def test_overlap_is_the_mean_over_images_with_anomalies(labels):
    model, records = Painted(labels["anomaly"]), EvaluatedRecords("queries_anomaly", "anomaly")
    batches = [[{"image_id": stem}] for stem in labels["anomaly"]]
    overlap = measure_overlap(model, batches, records, lambda label: label == 1)
    assert overlap.images == 2
    for query in range(4):
        each = []
        for stem in ("0", "1"):
            label = labels["anomaly"][stem]
            pairs = list(zip(model.masks(stem)[query][label != 255], label[label != 255] == 1, strict=True))
            each.append(sum(a and b for a, b in pairs) / sum(a or b for a, b in pairs))
        assert float(overlap.mean_iou[query]) == pytest.approx(np.mean(each))
    assert overlap.ranking() == [2, 1, 0, 3] and overlap.chosen() == [2, 1]
    first, second = query_table(overlap, overlap.chosen(), ["road", "tree", "sky"]).splitlines()[2:4]
    assert "tree 1.00" in first and "no object 1.00" in second and "| x" in second
    with pytest.raises(ValueError, match="queries_anomaly: none of its 3 images has a pixel of the region"):
        measure_overlap(model, batches[2:], records, lambda label: label == 1)


def test_choice_follows_the_iou_and_the_number_asked_for():
    overlap = QueryOverlap(torch.tensor([0.1, 0.25, 0.0, 0.6]), torch.zeros(4, 2), 1)
    assert overlap.chosen() == [3, 1]
    assert overlap.chosen(at_least=3) == [3, 1, 0]
    assert overlap.chosen(minimum_iou=0.9) == []


def test_the_command_writes_a_config_that_evaluates(arguments, tmp_path, capsys):
    output = tmp_path / "found" / "maskomaly.yaml"
    more = [
        "--road-dataset", "queries_closed", "--at-least", "2", "--out", str(output),
        "TEST.NUM_VISUALIZATIONS", "0", "MODEL.MASK2FORMER.ARCHITECTURE.train_num_points", "32",
    ]  # fmt: skip
    assert main(["find-queries", *arguments, *more]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "anomalies of 2 images" in printed and "the road of 3 images" in printed
    cfg = build_config(str(output), ["OUTPUT_DIR", str(tmp_path / "run")])
    assert len(set(cfg.MODEL.MASK2FORMER.ANOMALY_QUERIES)) >= 2
    # Overrides are kept where they make the model.
    assert cfg.MODEL.MASK2FORMER.ARCHITECTURE.train_num_points == 32 and cfg.TEST.NUM_VISUALIZATIONS == 1
    assert arguments[3] == cfg.MODEL.WEIGHTS
    assert "labels of queries_anomaly and queries_closed" in output.read_text()
    assert [path.name for path in output.parent.iterdir()] == ["maskomaly.yaml"]
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"])
    assert set(evaluate(cfg, model)["queries_anomaly"]) == {"anomaly/pooled/maskomaly", "anomaly/pooled/rba"}


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--dataset", "queries_closed"], "needs a data set of evaluator_type 'anomaly'"),
        (["--mask-threshold", "1"], "--mask-threshold: expected a value between 0 and 1, found 1"),
        (["--road-dataset", "queries_closed", "--road-class", "street"], "has no class 'street'"),
        (["--weights", "none.pth"], "MODEL.WEIGHTS: no file none.pth"),
        (["MODEL.META_ARCHITECTURE", "AnomalySegmentor", "TEST.SCORES", "['msp']"], "no mask model"),
    ],
)
def test_what_a_user_can_get_wrong_is_named(arguments, tmp_path, capsys, changed, message):
    assert main(["find-queries", *arguments, "--out", str(tmp_path / "queries.yaml"), *changed]) == 1
    assert message in capsys.readouterr().err
    assert not Path(tmp_path / "queries.yaml").exists()
