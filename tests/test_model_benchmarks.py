"""The commands that time the twins run, compare what they say they do, and write what they printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"


@pytest.mark.parametrize(
    "subject, ratios", [("train", {"gmm / softmax": 1.1}), ("infer", {"gmm / softmax, on logits": 1.05})]
)
def test_a_quick_run_from_any_folder(tmp_path, subject, ratios):
    result = tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "tools" / "benchmark.py"), subject, "--repeats", "1", "--json", str(result),
            "--config-file", str(CONFIG), "--size", "64", "96", "--batch", "2", "MODEL.DEVICE", "cpu",
            "MODEL.GMM.MEMORY_SIZE", "50",
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(result.read_text())
    assert data["subject"] == subject and data["settings"]["clock"] == "processor time"
    assert (data["settings"]["batch"], data["settings"]["size"]) == (2, [64, 96])
    found = {"gmm / softmax": data["ratio"]} if subject == "train" else data["ratios"]
    for name, wanted in ratios.items():
        assert f"at most {wanted} wanted" in done.stdout
        gmm, softmax = (
            data["seconds"][name.replace("gmm / softmax", twin)]["median"] for twin in ("gmm", "softmax")
        )
        assert found[name]["median"] == pytest.approx(gmm / softmax)
    assert list(tmp_path.iterdir()) == [result], "a benchmark leaves nothing but its result"
