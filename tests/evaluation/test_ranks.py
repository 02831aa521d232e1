"""Two processes with unequal shards give the results of one process, to the last bit."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gmm_anomaly

SCRIPT = Path(__file__).with_name("evaluate_shards.py")
IDS = [f"frame_{number:02d}" for number in range(5)]
RUNS = {
    "unequal": [[IDS[3]], [IDS[2], IDS[0], IDS[4], IDS[1]]],
    "empty": [[], IDS],
    "repeated": [IDS[:2], IDS[1:]],
}


@pytest.fixture
def job(anomaly_tree, closed_tree, scores, tmp_path):
    rng = np.random.default_rng(4)
    maps = {f"{name}/{one}": score for name, found in scores.items() for one, score in found.items()}
    logits = {
        one: rng.normal(size=(4, *label.shape)).astype("f4") for one, label in closed_tree.labels.items()
    }
    np.savez(tmp_path / "scores.npz", **maps)
    np.savez(tmp_path / "logits.npz", **logits)
    files = {"scores": str(tmp_path / "scores.npz"), "logits": str(tmp_path / "logits.npz")}
    return files | {"anomaly": str(anomaly_tree.root), "closed": str(closed_tree.root), "runs": RUNS}


@pytest.fixture
def outcomes(job, tmp_path) -> list[dict]:
    """What each of two processes found in each of the runs."""
    job_file = tmp_path / "job.json"
    job_file.write_text(json.dumps(job))
    root = str(Path(gmm_anomaly.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", SCRIPT, job_file, str(rank)],
            env=os.environ | {"PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [pickle.loads((tmp_path / f"outcomes_{rank}.pickle").read_bytes()) for rank in range(2)]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name + path.parent.name.split("_")[1]: path.read_bytes() for path in folder.rglob("*.png")}


def curves(folder: Path) -> str:
    """The one file of curves, which names its data set."""
    (path,) = (folder / "curves").iterdir()
    return path.read_text().replace(path.stem, "data set")


def test_two_ranks_equal_one_process(job, outcomes, tmp_path, registered):
    spec = importlib.util.spec_from_file_location("evaluate_shards", SCRIPT)
    shards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shards)
    alone = shards.evaluate(job, IDS, tmp_path / registered("alone"))
    assert [len(alone["anomaly"]), len(alone["closed"])] == [4, 1]
    expected = pictures(next(tmp_path.glob("alone_*")))
    # The first three images of either data set, and those with the highest and the lowest AP.
    assert 6 <= len(expected) <= 8
    expected_curves = curves(next(tmp_path.glob("alone_*")))
    for run in ("unequal", "empty"):
        # As bytes: equality of floats would miss NaN, and == of arrays is an array.
        assert pickle.dumps(outcomes[0][run]) == pickle.dumps(alone)
        assert outcomes[1][run] == {"anomaly": None, "closed": None}
        assert pictures(tmp_path / run) == expected
        assert curves(tmp_path / run) == expected_curves
    for rank in range(2):
        for message in outcomes[rank]["repeated"].values():
            assert (
                "3 images" not in message
                and "'frame_01'" in message
                and "1 images were evaluated by more" in message
            )
