"""Where synchronised batch norm is used, where it is not, and that the log says so once."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from gmm_anomaly.compat import add_upstream_keys
from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine import build_config
from gmm_anomaly.modeling import norm
from gmm_anomaly.modeling.decoders import build_decoder
from gmm_anomaly.modeling.norm import share_statistics, usable_norm


@pytest.fixture(autouse=True)
def _lines_of_this_test():
    norm._log_once.cache_clear()


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(norm, "world_size", lambda: 2)


def config(*overrides):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    add_upstream_keys(cfg)
    cfg.merge_from_list(list(overrides))
    return cfg


def norms(module):
    """Numbers of synchronised batch norms and of others."""
    found = [
        isinstance(part, nn.SyncBatchNorm) for part in module.modules() if isinstance(part, norm._BatchNorm)
    ]
    return sum(found), len(found) - sum(found)


def test_gpus_and_several_processes_have_it(two_processes, caplog):
    assert usable_norm("SyncBN", "cuda") == "SyncBN"
    assert usable_norm("GN", "cpu") == "GN" and usable_norm("", "cpu") == ""
    assert not caplog.records


def test_cpu_and_single_processes_do_not_and_one_line_says_so(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger(norm.__name__), "warning", lines.append)
    assert [usable_norm("SyncBN", "cuda") for _ in range(3)] == ["BN"] * 3
    monkeypatch.setattr(norm, "world_size", lambda: 2)
    assert [usable_norm("SyncBN", "cpu") for _ in range(3)] == ["BN"] * 3
    single, cpu = lines
    assert "SyncBN needs several processes" in single and "SyncBN needs GPUs; on cpu BN" in cpu


def test_config_takes_it_out_of_resnets_and_decoders_on_the_cpu(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger(norm.__name__), "warning", lines.append)
    cfg = build_config(
        "configs/base/r101_deeplabv3plus.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NUM_CLASSES", 19, "MODEL.RESNETS.NORM", "SyncBN"],
    )
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.DECODER.NORM == "BN"
    assert len(lines) == 1 and "SyncBN" in lines[0]


def test_timm_backbones_have_it_by_key(two_processes):
    keys = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.DEVICE", "cuda", "MODEL.TIMM.NORM"]
    image = ShapeSpec(channels=3)
    synchronised, plain = (build_backbone(config(*keys, name), image) for name in ("SyncBN", "BN"))
    number = norms(plain)[1]
    assert number > 20 and norms(plain) == (0, number) and norms(synchronised) == (number, 0)
    # Checkpoints of one are checkpoints of the other.
    synchronised.load_state_dict(plain.state_dict())
    picture = torch.rand(1, 3, 64, 64)
    for name, feature in plain.eval()(picture).items():
        torch.testing.assert_close(synchronised.eval()(picture)[name], feature)


def test_timm_on_the_cpu_keeps_its_own(two_processes):
    backbone = build_backbone(
        config(
            "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NORM", "SyncBN", "MODEL.DEVICE", "cpu"
        ),
        ShapeSpec(channels=3),
    )
    assert norms(backbone)[0] == 0 and norms(backbone)[1] > 20
    with pytest.raises(ValueError, match=r'MODEL\.TIMM\.NORM: expected "BN" or "SyncBN", found \'GN\''):
        build_backbone(
            config("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NORM", "GN"),
            ShapeSpec(channels=3),
        )


def test_decoder_follows_its_key(two_processes):
    shapes = {"level1": ShapeSpec(channels=4, stride=4), "level4": ShapeSpec(channels=8, stride=32)}
    keys = ["MODEL.DECODER.IN_FEATURES", ["level1", "level4"], "MODEL.DECODER.NORM", "SyncBN"]
    on_gpu, on_cpu = (
        build_decoder(config(*keys, "MODEL.DEVICE", device), shapes) for device in ("cuda", "cpu")
    )
    number = norms(on_cpu)[1]
    assert number > 3 and norms(on_gpu) == (number, 0) and norms(on_cpu) == (0, number)


def test_statistics_of_the_first_rank_are_shared_and_nothing_else(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.SyncBatchNorm(3), nn.GroupNorm(1, 3))
    )
    sent = []
    monkeypatch.setattr(norm, "broadcast_from_first", sent.append)
    share_statistics(model)
    expected = [buffer for part in (model[1], model[2][0]) for buffer in part.buffers()]
    assert len(sent) == len(expected) == 6 and all(
        one is other for one, other in zip(sent, expected, strict=True)
    )
