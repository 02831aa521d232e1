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


def check_where(where, printed):
    """Of a run with batches of 2."""
    assert sum(where["share"].values()) == pytest.approx(1)
    total = sum(where["seconds"].values())
    for part, seconds in where["seconds"].items():
        assert seconds > 0 and where["share"][part] == pytest.approx(seconds / total), part
        assert f"  {part} " in printed
    assert where["seconds"]["backbone"] > where["seconds"]["optimiser"]
    for data in where["data"].values():
        assert data["share"] == pytest.approx(2 * data["seconds_per_image"] / total)
        assert data["workers"] - 1 < data["share"] <= data["workers"]


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
    for name, speed in data["images_per_second"].items():
        assert speed == pytest.approx(2 / data["seconds"][name]["median"])
    if subject == "train":
        check_where(data["where"], printed)
    assert list(tmp_path.iterdir()) == [result], "a benchmark leaves nothing but its result"


def test_variants_without_a_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Where torch's inductor looks for the compiler.
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    result = tmp_path / "result.json"
    main = runpy.run_path(str(ROOT / "tools" / "benchmark.py"))["main"]
    main(["infer", "--variants", "--device", "cpu", *OPTIONS, "--json", str(result)])
    assert "left out, compiled: MODEL.COMPILE: " in capsys.readouterr().out
    variants = {row["variant"]: row for row in json.loads(result.read_text())["variants"]}
    assert {name: tuple(row["keys"].values()) for name, row in variants.items()} == {
        "plain": (False, False, False),
        "mixed precision": (True, False, False),
        "channels_last": (False, True, False),
    }
    for row in variants.values():
        for twin in ("softmax", "gmm"):
            seconds = row["seconds"][twin]["median"]
            assert row["images_per_second"][twin] == pytest.approx(2 / seconds)
            plain = variants["plain"]["seconds"][twin]["median"]
            assert row["times_as_fast"][twin]["median"] == pytest.approx(plain / seconds)
        assert row["ratio"]["median"] == pytest.approx(
            row["seconds"]["gmm"]["median"] / row["seconds"]["softmax"]["median"]
        )
