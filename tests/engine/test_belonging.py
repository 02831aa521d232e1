"""Weights and thresholds know what they belong to, and a run's own weights are those it made."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from gmm_anomaly.data import register_segmentation_dataset
from gmm_anomaly.engine import Checkpointer, build_config
from gmm_anomaly.engine.belonging import BELONGS_TO, belongings
from gmm_anomaly.engine.output_dir import with_run_weights
from gmm_anomaly.predict.threshold import Threshold


def config(*overrides, classes=("road", "traffic light")):
    register_segmentation_dataset("own", "images", "labels", classes=classes, overwrite=True)
    keys = ["MODEL.CLASSIFIER.NUM_CLASSES", 2, "DATASETS.TRAIN", ("own",), "MODEL.DEVICE", "cpu"]
    return build_config("", [*keys, *overrides])


def loaded(cfg, path, caplog, load="load_for_evaluation"):
    """What is said while a file is loaded into a model of a config."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gmm_anomaly"):
        getattr(Checkpointer(nn.Linear(1, 1), str(path.parent), cfg=cfg), load)(str(path))
    return caplog.text


@pytest.fixture
def weights(tmp_path):
    Checkpointer(nn.Linear(1, 1), str(tmp_path), cfg=config()).save("model_final", iteration=1)
    return tmp_path / "model_final.pth"


def resumed(self, path):
    return self.resume_or_load("", resume=True)


def test_other_classes_are_refused_other_keys_are_a_warning(weights, caplog, monkeypatch):
    monkeypatch.setattr(Checkpointer, "resumed", resumed, raising=False)
    monkeypatch.setattr(Checkpointer, "start", lambda self, path: self.load(path, []), raising=False)
    for classes, message in (
        (("traffic light", "road"), "road, traffic light, .* another order, traffic light, road"),
        (("road", "car"), "made for the classes road, traffic light, the config's data sets have road, car"),
    ):
        cfg = config(classes=classes)
        for load in ("load_for_evaluation", "load", "resumed"):
            with pytest.raises(ValueError, match=f"weights {weights}: .*{message}"):
                loaded(cfg, weights, caplog, load)
        # A training may start from weights of other classes.
        assert "made for the classes" in loaded(cfg, weights, caplog, "start")
    assert loaded(config("MODEL.DECODER.NORM", "SyncBN"), weights, caplog) == ""
    assert loaded(config(classes=("Road", "traffic_light")), weights, caplog) == ""
    for key, value, was in (
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0], "[103.53, 116.28, 123.675]"),
        ("INPUT.FORMAT", "RGB", "BGR"),
        ("INPUT.MIN_SIZE_TEST", 512, "0"),
        ("MODEL.TIMM.OUTPUT_STRIDE", 8, "32"),
        ("MODEL.DECODER.ASPP_DILATIONS", [12, 24, 36], "[6, 12, 18]"),
    ):
        said = loaded(config(key, value), weights, caplog)
        assert f"made under another config: {key} was {was}, is {value}\n" in said
    # Of somebody else.
    content = torch.load(weights, weights_only=True)
    del content[BELONGS_TO]
    torch.save(content, weights)
    assert loaded(config("INPUT.FORMAT", "RGB", classes=("a", "b")), weights, caplog) == ""


def test_a_threshold_is_of_one_way_to_look(tmp_path, caplog):
    def under(*overrides, **options):
        return belongings(config(*overrides, **options), scores=True)

    file = tmp_path / "threshold.json"
    Threshold(1.0, "msp", (0.0, 2.0), 0.1, 0.1, "d", 3, 9, None, under("TEST.AUG.SCALES", [1.0])).save(file)
    same, other = under(), under("TEST.AUG.ENABLED", True, "INPUT.FORMAT", "RGB")
    caplog.clear()
    Threshold.load(file).require("msp", None, same)
    assert caplog.text == ""
    Threshold.load(file).require("msp", None, other)
    assert "the threshold found on d: " in caplog.text
    assert "INPUT.FORMAT was BGR, is RGB; TEST.AUG.ENABLED was False, is True\n" in caplog.text
    with pytest.raises(ValueError, match="the threshold found on d: .* another order"):
        Threshold.load(file).require("msp", None, under(classes=("traffic light", "road")))
    # Of an earlier version.
    content = json.loads(file.read_text())
    del content["belongs_to"]
    file.write_text(json.dumps(content))
    Threshold.load(file).require("msp", None, under(classes=("a", "b")))


def test_what_a_run_started_from_never_stands_in_for_what_it_made(weights, tmp_path):
    start, other = tmp_path / "start" / "model_final.pth", tmp_path / "other" / "config.yaml"
    start.parent.mkdir()
    start.touch()
    file, output = tmp_path / "config.yaml", ["OUTPUT_DIR", str(tmp_path)]
    cfg = config("MODEL.WEIGHTS", str(start), *output)
    file.write_text(cfg.dump())

    def chosen(config_file, cfg, *overrides):
        return with_run_weights(cfg, str(config_file), overrides).MODEL.WEIGHTS

    assert chosen(file, cfg) == str(weights)
    assert chosen(file, cfg, "MODEL.WEIGHTS", str(start)) == str(start)
    # The run's folder may have moved, or its config name what was fitted in it afterwards.
    assert chosen(file, config("MODEL.WEIGHTS", str(start))) == str(weights)
    fitted = tmp_path / "mixtures_final.pth"
    fitted.touch()
    assert chosen(file, config("MODEL.WEIGHTS", str(fitted))) == str(fitted)
    # The config that the run was started with.
    with pytest.raises(ValueError, match=f"started from {start}; add .* MODEL.WEIGHTS {weights}, or"):
        chosen(other, cfg)
    assert chosen(other, config("MODEL.WEIGHTS", str(start))) == str(start)
    assert chosen(other, config("MODEL.WEIGHTS", "zoo.pkl", *output)) == "zoo.pkl"
