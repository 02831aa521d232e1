"""The commands that time the twins run, compare what they say they do, and write what they printed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
OPTIONS = ["--repeats", "1", "--config-file", str(CONFIG), "--size", "64", "96", "--batch", "2"]
OVERRIDES = ["MODEL.DEVICE", "cpu", "MODEL.GMM.MEMORY_SIZE", "50"]


@pytest.mark.parametrize(
    "subject, ratios",
    [
        ("train", {"gmm / softmax": 1.1}),
        ("infer", {"gmm / softmax, on logits": 1.05, "gmm / softmax, on features": 1.05}),
    ],
)
def test_a_quick_run(tmp_path, monkeypatch, capsys, subject, ratios):
    monkeypatch.chdir(tmp_path)
    result = tmp_path / "result.json"
    main = runpy.run_path(str(ROOT / "tools" / "benchmark.py"))["main"]
    main([subject, *OPTIONS, "--json", str(result), *OVERRIDES])
    printed = capsys.readouterr().out
    data = json.loads(result.read_text())
    assert data["subject"] == subject and data["settings"]["clock"] == "processor time"
    assert (data["settings"]["batch"], data["settings"]["size"]) == (2, [64, 96])
    found = {"gmm / softmax": data["ratio"]} if subject == "train" else data["ratios"]
    assert set(found) == set(ratios)
    for name, wanted in ratios.items():
        assert f"at most {wanted} wanted" in printed
        gmm, softmax = (
            data["seconds"][name.replace("gmm / softmax", twin)]["median"] for twin in ("gmm", "softmax")
        )
        assert found[name]["median"] == pytest.approx(gmm / softmax)
    assert list(tmp_path.iterdir()) == [result], "a benchmark leaves nothing but its result"
