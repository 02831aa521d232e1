"""The comparison of the published systems, on tiny synthetic streets: real runs, one table, no run twice."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def compare(output: Path, *systems: str, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "tools" / "compare.py"),
        "--output",
        str(output),
        "--systems",
        *systems,
    ]
    return subprocess.run([*command, "--", *overrides], capture_output=True, text=True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, tiny_streets):
    output = tmp_path_factory.mktemp("compare")
    return output, compare(output, "softmax", "fitted mixtures", overrides=tiny_streets)


def test_one_table_with_the_numbers_of_the_runs(compared):
    output, done = compared
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {(row["system"], row["score"]): row for row in json.loads((output / "compare.json").read_text())}
    assert list(rows) == [
        ("softmax", "msp"),
        ("softmax", "energy"),
        ("softmax", "hybrid"),
        ("fitted mixtures", "gmm_density"),
        ("fitted mixtures", "hybrid"),
    ]
    folders = {"softmax": "", "fitted mixtures": "mixtures"}
    for (system, score), row in rows.items():
        run = output / "effnetlite0_deeplabv3plus_softmax" / folders[system]
        datasets = json.loads((run / "results.json").read_text())["datasets"]
        anomaly = datasets["synthetic_street_anomaly"]
        assert row["mIoU"] == datasets["synthetic_street_val"]["sem_seg"]["mIoU"]
        assert [row["AP"], row["FPR95"]] == [anomaly["anomaly"][score][name] for name in ("AP", "FPR95")]
        assert [row["sIoU"], row["F1"]] == [anomaly["components"][score][name] for name in ("sIoU_gt", "F1")]
        assert (row["protocol"], row["track"]) == ("pooled", "obstacle")
        assert row["seconds"] == json.loads((run / "run.json").read_text())["seconds"] > 0
        assert f"| {system} " in done.stdout and f"{row['AP']:.3f}" in done.stdout


def test_finished_runs_are_read_and_never_mixed_with_others(compared, tiny_streets):
    output, _ = compared
    weights = output / "effnetlite0_deeplabv3plus_softmax" / "model_final.pth"
    written = weights.stat().st_mtime_ns
    again = compare(output, "softmax", overrides=tiny_streets)
    assert again.returncode == 0 and "finished before" in again.stdout
    assert weights.stat().st_mtime_ns == written
    other = compare(output, "softmax", overrides=[*tiny_streets, "SOLVER.BASE_LR", "0.1"])
    assert other.returncode != 0 and "was made by another command" in other.stderr
    assert weights.stat().st_mtime_ns == written


def test_a_failed_run_is_told_and_goes_on_afterwards(tmp_path, tiny_streets):
    failed = compare(tmp_path, "softmax", overrides=[*tiny_streets, "MODEL.DECODER.NAME", "Nothing"])
    assert failed.returncode != 0 and "the run failed (exit status 1)" in failed.stderr
    record = json.loads((tmp_path / "effnetlite0_deeplabv3plus_softmax" / "run.json").read_text())
    assert record["finished"] is False and record["seconds"] > 0
    assert not (tmp_path / "compare.json").exists()


def test_every_system_names_configs_of_both_data_sets_and_scores_they_report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("compare", ROOT / "tools" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare", module)  # its dataclass looks the module up
    spec.loader.exec_module(module)
    from gmm_anomaly.engine import build_config
    from gmm_anomaly.evaluation.postprocessing import reported_scores

    for config_set, dataset in (("synthetic", "synthetic_street_anomaly"), ("camvid", "camvid_ood_test")):
        # Only CamVid has classes to hold out, by which the best options were chosen.
        found = {name: system for name, system in module.SYSTEMS.items() if system.is_in(config_set)}
        missing = {"softmax (best)", "GMMSeg (best)"} if config_set == "synthetic" else set()
        assert set(found) == set(module.SYSTEMS) - missing
        for name, system in found.items():
            cfg = build_config(str(ROOT / "configs" / config_set / f"{system.config}.yaml"))
            assert set(system.scores) <= set(reported_scores(cfg, dataset)), (config_set, name)
            assert cfg.TEST.COMPONENT_TRACK == "obstacle"
