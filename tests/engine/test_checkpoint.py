"""Checkpoints: whole or not there, loadable without pickles, and refused when they do not fit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from gmm_anomaly.engine.checkpoint import Checkpointer
from gmm_anomaly.gmm import GaussianMixtureBank


class Classifier(nn.Module):
    def __init__(self, classes, memory=10):
        super().__init__()
        self.bank = GaussianMixtureBank(classes, 2, 4, memory, samples_per_update=5, warm_start_features=6)


class Model(nn.Module):
    def __init__(self, classes=3, width=4):
        super().__init__()
        self.backbone = nn.Linear(2, width)
        self.classifier = Classifier(classes)


def save(model, folder, name="model_final"):
    Checkpointer(model, str(folder)).save(name, iteration=7)
    return str(folder / f"{name}.pth")


def test_round_trip_without_pickles(tmp_path):
    model = Model()
    model.classifier.bank.fitted[1] = True
    path = save(model, tmp_path)
    assert torch.load(path, weights_only=True)["iteration"] == 7
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    other = Model()
    Checkpointer(other).load_for_evaluation(path)
    for (name, expected), found in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name
    assert other.classifier.bank.is_fitted


def test_other_number_of_classes_is_refused(tmp_path):
    path = save(Model(classes=3), tmp_path)
    with pytest.raises(ValueError, match="trained with 3 classes, MODEL.CLASSIFIER.NUM_CLASSES is 5"):
        Checkpointer(Model(classes=5)).load(path)


def test_other_shapes_are_refused_by_name(tmp_path):
    path = save(Model(width=4), tmp_path)
    message = re.escape("backbone.weight: (4, 2) in the checkpoint, (6, 2) in the model")
    with pytest.raises(ValueError, match=message):
        Checkpointer(Model(width=6)).load(path)


def test_evaluation_needs_complete_weights(tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({"model": {"backbone.weight": torch.zeros(4, 2), "backbone.bias": torch.zeros(4)}}, path)
    Checkpointer(Model()).load(str(path))
    with pytest.raises(ValueError, match="lacks .* tensors of the model .*classifier.bank.means"):
        Checkpointer(Model()).load_for_evaluation(str(path))
    with pytest.raises(ValueError, match="add MODEL.WEIGHTS FILE"):
        Checkpointer(Model()).load_for_evaluation("")
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS: no file"):
        Checkpointer(Model()).load_for_evaluation(str(tmp_path / "none.pth"))


def test_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model = Model()
    path = save(model, tmp_path)
    before = (tmp_path / "model_final.pth").read_bytes()

    def full_disk(data, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left on device.*earlier checkpoints are intact"):
        save(model, tmp_path)
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]
    assert path.endswith("model_final.pth")
