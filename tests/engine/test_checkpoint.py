"""Checkpoints: whole or not there, loadable without pickles, and refused when they do not fit."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import signal

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine.checkpoint import Checkpointer
from gmm_anomaly.engine.hooks import BestCheckpoint
from gmm_anomaly.gmm import GaussianMixtureBank


class Model(nn.Module):
    def __init__(self, classes=3, width=4, memory=10, warm_start=6):
        super().__init__()
        self.backbone = nn.Linear(2, width)
        self.classifier = nn.Module()
        self.classifier.bank = GaussianMixtureBank(
            classes, 2, 4, memory, samples_per_update=5, warm_start_features=warm_start, save_memory=True
        )


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


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    path = save(Model(), tmp_path)
    with pytest.raises(ValueError, match="trained with 3 classes, MODEL.CLASSIFIER.NUM_CLASSES is 5"):
        Checkpointer(Model(classes=5)).load(path)
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


def test_a_write_that_does_not_fit_leaves_the_earlier_checkpoint(tmp_path):
    """Files of more than 64 kB cannot be written, as on a full disk."""
    path = save(Model(width=4), tmp_path, "model_0000001")
    before = (tmp_path / "model_0000001.pth").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The signal would end the process before there is an error.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(
            OSError, match=r"model_0000002.pth could not be written .*MB are free there.*intact"
        ):
            save(Model(width=100_000), tmp_path, "model_0000002")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert Checkpointer(Model(), str(tmp_path)).get_checkpoint_file() == path
    assert not list(tmp_path.glob(".*"))


def flip_a_byte_of_a_tensor(path):
    content = bytearray(open(path, "rb").read())
    content[content.index(torch.full((3,), 1.5).numpy().tobytes())] ^= 1
    open(path, "wb").write(content)


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (lambda path: os.truncate(path, os.path.getsize(path) // 2), "is truncated or damaged: its .* bytes"),
        (flip_a_byte_of_a_tensor, "is damaged: the checksum of .*data/.* is wrong"),
        (os.unlink, "is missing"),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, caplog, damage, flaw):
    model = Model(width=3)
    nn.init.constant_(model.backbone.bias, 1.5)
    run = Checkpointer(model, str(tmp_path))
    for number in (1, 2):
        run.save(f"model_000000{number}", iteration=number)
    first, second = (str(tmp_path / f"model_000000{number}.pth") for number in (1, 2))
    # Not of this run, and newer than both.
    torch.save({"model": Model().state_dict()}, tmp_path / "model_0000009.pth")
    damage(second)
    checkpointer = Checkpointer(Model(width=3), str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert checkpointer.get_checkpoint_file() == first
    assert re.search(f"{second} {flaw}", caplog.text) and f"checkpoint before: {first}" in caplog.text
    damage(first)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in .* can be used: .*{flaw}.*start anew"):
        Checkpointer(Model(width=3), str(tmp_path)).get_checkpoint_file()


def save_in_turn(folder, number):
    """As a run that was resumed."""
    checkpointer = Checkpointer(Model(), str(folder))
    if checkpointer.has_checkpoint():
        checkpointer.get_checkpoint_file()
    checkpointer.save(f"model_{number:07d}", iteration=number)
    checkpointer.keep_last(2)
    return str(folder / f"model_{number:07d}.pth")


def test_the_last_ones_of_the_run_are_kept_and_a_tag_set_back_by_hand_counts(tmp_path):
    (tmp_path / "model_0000000.pth").write_bytes(b"of another run")
    paths = [save_in_turn(tmp_path, number) for number in range(1, 6)]
    left = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert left == ["model_0000000.pth", "model_0000004.pth", "model_0000005.pth"]
    assert Checkpointer(Model(), str(tmp_path)).get_checkpoint_file() == paths[-1]
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth\n")
    assert Checkpointer(Model(), str(tmp_path)).get_checkpoint_file() == paths[-2]


def test_rings_go_into_all_checkpoints_but_the_last(tmp_path):
    model = Model()
    ring = "classifier.bank.memory.ring"
    for name, has_it in (("model_0000001", True), ("model_final", False)):
        assert (ring in torch.load(save(model, tmp_path, name), weights_only=True)["model"]) == has_it
    # Rings of another size are left out of what is loaded; the statistics come along.
    model.classifier.bank.memory.total += 2
    # And a class that waits for its start waits anew.
    model.classifier.bank.warm_start.count += 3
    other = Model(memory=7, warm_start=9)
    Checkpointer(other).load(save(model, tmp_path, "model_0000002"))
    assert not other.classifier.bank.warm_start.count.any()
    assert (other.classifier.bank.memory.total == 2).all()
    assert (other.classifier.bank.memory.slot_state == 0).all()


def best(model, folder, metric, *, period=5):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC = ("val",), period, metric
    return BestCheckpoint(cfg, Checkpointer(model, str(folder)))


def test_the_best_is_remembered_by_the_next_process(tmp_path):
    model = Model()

    def offered(kept, number, **metrics):
        """The number of the weights that are the best after these."""
        nn.init.constant_(model.backbone.bias, number)
        kept.offer({"val": {"sem_seg": metrics}}, number)
        state = torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]
        return state["backbone.bias"][0].item()

    first = best(model, tmp_path, "val/sem_seg/mIoU")
    values = (40.0, math.nan, 50.0, 50.0, 45.0)
    assert [offered(first, number, mIoU=value) for number, value in enumerate(values)] == [0, 0, 2, 2, 2]
    assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == 2
    second = best(model, tmp_path, "val/sem_seg/mIoU")
    second.resume()
    assert [offered(second, 6, mIoU=49.0), offered(second, 7, mIoU=51.0)] == [2, 7]
    # Another measure of what is best begins anew, and --resume goes on from none of this.
    third = best(model, tmp_path, "val/sem_seg/ECE")
    third.resume()
    assert [offered(third, number, ECE=0.1 * number) for number in (9, 10, 8)] == [9, 9, 8]
    assert not Checkpointer(model, str(tmp_path)).has_checkpoint()
    with pytest.raises(ValueError, match="gave no 'val/sem_seg/ECE'; it gave val/sem_seg/AP"):
        offered(third, 11, AP=1.0)


def test_a_best_metric_needs_evaluations(tmp_path):
    with pytest.raises(ValueError, match="needs evaluations during training; set TEST.EVAL_PERIOD"):
        best(Model(), tmp_path, "val/sem_seg/mIoU", period=0)
