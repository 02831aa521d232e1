"""Where synchronised batch norm is used, where it is not, and that the log says so once."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.logger import _LOG_COUNTER
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gmm_anomaly.engine import build_config, evaluation
from gmm_anomaly.modeling import build_backbone, registry
from gmm_anomaly.modeling.decoders import build_decoder
from gmm_anomaly.modeling.registry import usable_norm

SYNC = ["MODEL.DECODER.NORM", "SyncBN", "MODEL.DEVICE"]


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    """What is said in this test."""
    _LOG_COUNTER.clear()
    said = []
    monkeypatch.setattr(logging.getLogger(registry.__name__), "log", lambda level, text: said.append(text))
    return said


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(registry, "world_size", lambda: 2)


def norms(module):
    """Numbers of synchronised batch norms and of others."""
    found = [isinstance(part, nn.SyncBatchNorm) for part in module.modules() if isinstance(part, _BatchNorm)]
    return sum(found), len(found) - sum(found)


def test_gpus_and_several_processes_have_it(two_processes, lines):
    assert usable_norm("SyncBN", "cuda") == "SyncBN"
    assert usable_norm("GN", "cpu") == "GN" and usable_norm("", "cpu") == ""
    assert not lines


def test_cpu_and_single_processes_do_not_and_one_line_says_so(monkeypatch, lines):
    assert [usable_norm("SyncBN", "cuda") for _ in range(3)] == ["BN"] * 3
    monkeypatch.setattr(registry, "world_size", lambda: 2)
    assert [usable_norm("SyncBN", "cpu") for _ in range(3)] == ["BN"] * 3
    single, cpu = lines
    assert "SyncBN needs several processes" in single and "SyncBN needs GPUs; on cpu BN" in cpu


def test_config_takes_it_out_of_resnets_and_decoders_on_the_cpu(lines):
    cfg = build_config(
        "configs/base/r101_deeplabv3plus.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NUM_CLASSES", 19, "MODEL.RESNETS.NORM", "SyncBN"],
    )
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.DECODER.NORM == "BN"
    assert len(lines) == 1 and "SyncBN" in lines[0]


def test_timm_backbones_follow_the_decoders_key(config, two_processes):
    keys = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_efficientnet", *SYNC]
    synchronised, plain = (build_backbone(config(*keys, device)) for device in ("cuda", "cpu"))
    number = norms(plain)[1]
    assert number > 10 and norms(plain) == (0, number) and norms(synchronised) == (number, 0)
    # Checkpoints of one are checkpoints of the other.
    synchronised.load_state_dict(plain.state_dict())
    picture = torch.rand(1, 3, 64, 64)
    for name, feature in plain.eval()(picture).items():
        torch.testing.assert_close(synchronised.eval()(picture)[name], feature)


def test_decoder_follows_its_key(config, two_processes):
    shapes = {"level1": ShapeSpec(channels=4, stride=4), "level4": ShapeSpec(channels=8, stride=32)}
    on_gpu, on_cpu = (build_decoder(config(*SYNC, device), shapes) for device in ("cuda", "cpu"))
    number = norms(on_cpu)[1]
    assert number > 3 and norms(on_gpu) == (number, 0) and norms(on_cpu) == (0, number)


def test_statistics_of_the_first_rank_are_shared_and_nothing_else(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.SyncBatchNorm(3), nn.GroupNorm(1, 3))
    )
    sent = []
    monkeypatch.setattr(evaluation, "broadcast_from_first", sent.append)
    evaluation.share_statistics(model)
    expected = [buffer for part in (model[1], model[2][0]) for buffer in part.buffers()]
    assert len(sent) == len(expected) == 6
    assert all(one is other for one, other in zip(sent, expected, strict=True))


def test_a_norm_that_does_not_divide_the_channels_is_named(config):
    cfg = config("MODEL.DECODER.NORM", "GN")
    with pytest.raises(ValueError, match="MODEL.DECODER.NORM: DeepLabV3PlusDecoder cannot have 'GN': .*48"):
        build_decoder(cfg, {f"level{i}": ShapeSpec(channels=64, stride=2**i) for i in (2, 5)})
