"""The study: one table of several runs, its verdicts, and the best model in half precision."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.small_checkpoint import write_small_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("study_table")


def entry(system, score, ap, fpr, miou=50.0):
    return {
        "decoder": "D",
        "system": system,
        "score": score,
        "mIoU": miou,
        "AP": ap,
        "AUROC": 0.9,
        "FPR95": fpr,
    }


def test_means_deviations_and_verdicts_by_hand(tables):
    found = [
        *(entry("softmax", "msp", ap, 0.4) for ap in (0.1, 0.3)),
        entry("softmax", "energy", 0.5, 0.3),
        entry("softmax", "entropy", 0.9, 0.1),
        entry("GMMSeg", "gmm_density", 0.45, 0.24, miou=49.4),
        entry("GMMSeg", "hybrid", 0.6, 0.25, miou=49.5),
    ]
    rows = tables.summarised(found, {"softmax": ("msp", "energy"), "GMMSeg": ("gmm_density", "hybrid")})
    assert [(row["score"], row["runs"]) for row in rows] == [
        ("msp", 2), ("energy", 1), ("gmm_density", 1), ("hybrid", 1)
    ]  # fmt: skip
    assert rows[0]["AP"] == pytest.approx((0.2, 0.02**0.5)) and rows[1]["AP"] == (0.5, None)
    assert "0.200 ± 0.141" in tables.table(rows) and "| 49.4" in tables.table(rows)
    assert {said["system"] for said in tables.verdicts(rows)} == {"GMMSeg"}
    holds = {
        (said["score"], said["check"].split()[0], said["check"][-3:]): said["holds"]
        for said in tables.verdicts(rows)
    }
    assert holds == {
        ("gmm_density", "mIoU", "n's"): False,  # 49.4 < 50 - 0.5
        ("gmm_density", "AP", "MSP"): True,  # 0.45 > 2 x 0.2
        ("gmm_density", "AP", "rgy"): False,  # 0.45 < 0.5
        ("gmm_density", "FPR95", "MSP"): True,  # 0.24 = 0.6 x 0.4
        ("hybrid", "mIoU", "n's"): True,
        ("hybrid", "AP", "MSP"): True,
        ("hybrid", "AP", "rgy"): True,
        ("hybrid", "FPR95", "MSP"): False,  # 0.25 > 0.24
    }  # fmt: skip


def test_the_best_mixtures_are_judged_by_a_twin_with_the_same_options(tables):
    scores = {"softmax": ("msp", "energy"), "softmax (best)": ("msp", "energy"), "GMMSeg (best)": ("hybrid",)}
    found = [
        *(entry("softmax", score, 0.1, 0.9, miou=40.0) for score in ("msp", "energy")),
        *(entry("softmax (best)", score, 0.4, 0.5, miou=50.0) for score in ("msp", "energy")),
        entry("GMMSeg (best)", "hybrid", 0.7, 0.2, miou=49.0),
    ]
    said = tables.verdicts(tables.summarised(found, scores))
    assert [(one["bound"], one["holds"]) for one in said] == [
        (49.5, False), (0.8, False), (0.4, True), (pytest.approx(0.3), True)
    ]  # fmt: skip


def study(output, *arguments, overrides):
    command = [sys.executable, str(ROOT / "tools" / "study.py"), "synthetic", "--output", str(output)]
    return subprocess.run(
        [*command, "--decoders", "SegFormer", *arguments, "--", *overrides], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def studied(tmp_path_factory, tiny_streets):
    output = tmp_path_factory.mktemp("study")
    return output, study(output, "--systems", "softmax", "GMMSeg", overrides=tiny_streets)


def test_runs_become_a_table_and_the_best_a_small_model(studied):
    output, done = studied
    assert done.returncode == 0, done.stderr[-2000:]
    data = json.loads((output / "study.json").read_text())
    for run in data["runs"]:
        results = json.loads((output / run["run"] / "results.json").read_text())["datasets"]
        assert run["AP"] == results["synthetic_street_anomaly"]["anomaly"][run["score"]]["AP"]
        assert run["mIoU"] == results["synthetic_street_val"]["sem_seg"]["mIoU"]
    assert {run["run"] for run in data["runs"]} == {
        f"segformer/seed0/effnetlite0_deeplabv3plus_{name}" for name in ("softmax", "gmm")
    }
    assert "[2/2] SegFormer, GMMSeg, seed0" in done.stdout and "AP above the twin's energy" in done.stdout

    best = max(data["runs"], key=lambda run: run["AP"])
    small = json.loads((output / "best" / "results.json").read_text())["datasets"]
    found = small["synthetic_street_anomaly"]["anomaly"][best["score"]]
    assert found["AP"] == pytest.approx(best["AP"], abs=0.02), "half precision moves a score by little"
    card = (output / "best" / "README.md").read_text()
    assert f"| {best['score']} " in card and f"{found['AP']:.3f}" in card
    state = torch.load(output / "best" / "model.pth", weights_only=True)["model"]
    assert state["decoder.fuse.weight"].dtype == torch.float16
    assert {value.dtype for name, value in state.items() if name.endswith("running_var")} == {torch.float32}


def test_finished_runs_are_read(studied, tiny_streets):
    output, _ = studied
    again = study(output, "--systems", "softmax", "GMMSeg", overrides=tiny_streets)
    assert again.returncode == 0 and again.stdout.count("finished before") == 2
    assert again.stdout.count("published before") == 1


def test_a_system_without_a_config_is_named(tmp_path):
    done = study(tmp_path, "--systems", "GMMSeg (best)", overrides=[])
    assert done.returncode == 2
    assert "--systems: configs/synthetic has no config of GMMSeg (best)" in done.stderr


def test_a_model_that_is_too_large_is_not_written(studied, tmp_path):
    run = studied[0] / "segformer/seed0/effnetlite0_deeplabv3plus_gmm"
    cfg = build_config(str(run / "config.yaml"))
    with pytest.raises(ValueError, match=r"model.pth: the model takes [67]\.\d MB, at most 5 MB"):
        write_small_checkpoint(cfg, str(run / "model_final.pth"), tmp_path / "small", at_most=5)
    assert list((tmp_path / "small").iterdir()) == []
