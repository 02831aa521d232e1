"""The study on tiny streets: real runs, one table, no run twice, and the best model in half precision."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from gmm_anomaly import AnomalyPredictor
from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.evaluation import reported_scores
from tools import study as script

ROOT = Path(__file__).resolve().parents[1]

SYSTEMS = ("fitted without labels", "softmax", "fitted mixtures")


@pytest.fixture(scope="module")
def studied(tmp_path_factory, tiny_streets):
    """The folder of a study, and what it printed at its end."""
    output = tmp_path_factory.mktemp("study")
    words = ["synthetic", "--output", str(output), "--systems", *SYSTEMS, "--", *tiny_streets]
    words += ["DATASETS.SYNTHETIC.CACHE_DIR", str(output / "frames")]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["study.py", *words])
        script.main()
    return output, printed.getvalue()


def test_one_table_with_the_numbers_of_the_runs(studied):
    output, printed = studied
    data = json.loads((output / "study.json").read_text())
    for run in data["runs"]:
        results = json.loads((output / run["run"] / "results.json").read_text())["datasets"]
        anomaly = results[run["data"]]
        if run["mIoU"] is not None:
            assert run["mIoU"] == results["synthetic_street_val"]["sem_seg"]["mIoU"]
        assert run["AP"] == anomaly["anomaly"][run["score"]]["AP"]
        assert run["F1"] == anomaly.get("components", {}).get(run["score"], {}).get("F1")
    shown = [(row["system"], row["score"]) for row in data["table"]]
    assert shown == [(name, score) for name in SYSTEMS for score in script.SYSTEMS[name].scores]
    assert f"| {data['table'][-1]['AP'][0]:.3f} " in printed


def test_a_run_becomes_one_small_file_with_its_card(studied, monkeypatch):
    run = studied[0] / "deeplabv3plus" / "seed0" / script.SOFTMAX
    target = studied[0] / "handed_on" / "softmax.pth"
    words = [str(ROOT / "tools" / "publish.py"), str(run), "--out", str(target)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(words[0], run_name="__main__")
    stored = torch.load(target, weights_only=True)
    state, threshold = stored["model"], stored["threshold"]
    assert {value.dtype for value in state.values() if value.dim() == 4} == {torch.float16}
    assert {value.dtype for name, value in state.items() if name.endswith("running_var")} == {torch.float32}
    assert threshold["dataset"] == "synthetic_street_val" and threshold["measured_fpr"] <= 0.05
    small, whole = (
        json.loads((folder / "results.json").read_text())["datasets"]["synthetic_street_anomaly"]["anomaly"]
        for folder in (run / "published", run)
    )
    for score, numbers in whole.items():
        assert small[score]["AP"] == pytest.approx(numbers["AP"], abs=0.02), "half precision"
        assert f"{100 * small[score]['AP']:.1f}" in (target.parent / "README.md").read_text()
    assert AnomalyPredictor.from_config(target).threshold == threshold["value"]


def test_finished_runs_are_read_and_never_mixed_with_others(studied, tiny_streets):
    output, _ = studied
    folder = output / "deeplabv3plus" / "seed0" / script.SOFTMAX
    arguments = ["SEED", "0", *tiny_streets, "DATASETS.SYNTHETIC.CACHE_DIR", str(output / "frames")]
    written = (folder / "model_final.pth").stat().st_mtime_ns
    config = script.config_file("synthetic", script.SOFTMAX)
    assert script.run_once(config, folder, arguments)["finished"]
    assert (folder / "model_final.pth").stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="was made by another command"):
        script.run_once(config, folder, [*arguments, "SOLVER.BASE_LR", "0.1"])


def test_a_failed_run_is_told_and_goes_on_afterwards(tmp_path):
    with pytest.raises(SystemExit, match="the run failed"):
        script.run_once(ROOT / "no_such.yaml", tmp_path / "run", [])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"] is False and record["seconds"] > 0


def test_means_and_deviations_by_hand():
    entry = {"decoder": "D", "system": "softmax", "score": "msp", "data": "A", "seconds": 2.0}
    entry |= dict.fromkeys(script.METRICS)
    rows = script.summarised([{**entry, "mIoU": 50.0, "AP": ap} for ap in (0.1, 0.3)])
    assert rows[0]["AP"] == pytest.approx((0.2, 0.02**0.5)) and rows[0]["F1"] is None
    assert "0.200 ± 0.141" in script.table(rows) and "F1" not in script.table(rows)


def test_every_system_names_scores_that_its_config_reports():
    road = {"best", "softmax", "GMMSeg", "fitted mixtures"}
    everywhere = set(script.SYSTEMS) - {"bundled", "fitted without labels", "best"}
    # Only CamVid has classes to hold out, by which its best options were chosen.
    chosen = {"softmax (best)", "GMMSeg (best)"}
    for config_set, dataset, systems in (
        ("synthetic", "synthetic_street_anomaly", everywhere - chosen),
        ("camvid", "camvid_ood_test", everywhere),
        ("road", "road_anomaly", road),
    ):
        files = {
            name: ROOT / script.config_file(config_set, system.config)
            for name, system in script.SYSTEMS.items()
            if system.config is not None
        }
        assert {name for name, file in files.items() if file.is_file()} == systems
        for name in systems:
            cfg = build_config(str(files[name]))
            assert set(script.SYSTEMS[name].scores) <= set(reported_scores(cfg, dataset)), (config_set, name)
