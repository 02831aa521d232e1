"""What the cost table says, against counts by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn

from gmm_anomaly.config import add_gmm_anomaly_config
from tools.analyze_model import attention_multiply_adds, main, measure
from tools.benchmarks.models import make_ready

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "analyze_model.py"
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
PARTS = ("backbone", "decoder", "classifier")
TINY = ["MODEL.DEVICE", "cpu", "MODEL.GMM.MEMORY_SIZE", "50"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    done = subprocess.run(
        [
            sys.executable, str(SCRIPT), "--config-file", str(CONFIG), "--size", "64", "96",
            "--repeats", "1", "--json", str(folder / "cost.json"), "--opts", *TINY,
        ],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "cost.json").read_text())["models"]


def test_a_row_for_every_config(table):
    printed, found = table
    rows = [line for line in printed.splitlines() if line.startswith("| effnet")]
    assert [row.split()[1] for row in rows] == [one["config"] for one in found] == [CONFIG.stem]
    assert "one image of 64 x 96" in printed and "processor time with 1 thread" in printed
    for one in found:
        assert one["passes"] == 1 and one["seconds"] > 0 and one["peak_memory"] >= one["idle_memory"] > 1e8
        assert one["parameters"]["total"] >= sum(one["parameters"][part] for part in PARTS)
        assert one["multiply_adds"]["total"] == sum(one["multiply_adds"][part] for part in PARTS)


def test_twins_differ_in_their_classifiers_by_what_a_mixture_costs(table):
    gmm = table[1][0]
    softmax = measure(str(CONFIG.with_name("effnetlite0_deeplabv3plus_softmax.yaml")), TINY, (64, 96), 1, 1)
    for part in ("backbone", "decoder"):
        assert gmm["parameters"][part] == softmax["parameters"][part]
        assert gmm["multiply_adds"][part] == softmax["multiply_adds"][part]
    # 16 x 24 pixels of 96 channels; 10 classes of 5 components in 64 dimensions: a hidden layer of 128, the
    # embedding, and two products of every pixel with all components.
    pixels = 16 * 24
    assert softmax["multiply_adds"]["classifier"] == pixels * 96 * 10
    products = pixels * (96 * 128 + 128 * 64 + 2 * 64 * 50)
    # Norms are counted as well, with a few operations a value.
    assert products <= gmm["multiply_adds"]["classifier"] <= products + pixels * 10 * (128 + 2 * 64 + 10)


def test_a_missing_config_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--config-file", str(tmp_path / "none.yaml")])
    assert f"no file {tmp_path / 'none.yaml'}" in capsys.readouterr().err


def test_attention_counts_both_of_its_products():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x[..., :7, :], x[..., :7, :])

    counted = FlopCountAnalysis(Attention(), torch.zeros(2, 3, 11, 8)).set_op_handle(
        "aten::scaled_dot_product_attention", attention_multiply_adds
    )
    assert counted.total() == 2 * 3 * 11 * 7 * (8 + 8)


def test_models_are_made_ready_whatever_they_measure_after_training():
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(
        [*TINY, "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.FEATURE_DISTANCE.FEATURES", ["level1"],
         "MODEL.GMM.NUM_COMPONENTS", 2, "MODEL.DECODER.CHANNELS", 8, "MODEL.DECODER.ASPP_CHANNELS", 8]
    )  # fmt: skip
    model = build_model(cfg).eval()
    make_ready(model)
    with torch.no_grad():
        result = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]
    assert all(score.isfinite().all() for score in result["anomaly_scores"].values())
