"""The scaling benchmark: its model by hand, and two real processes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from gmm_anomaly.benchmark.scaling import model_scaling

ROOT = Path(__file__).parents[1]
TINY = [
    "MODEL.DECODER.CHANNELS", "12", "MODEL.DECODER.ASPP_CHANNELS", "8", "MODEL.DECODER.PROJECT_CHANNELS", "4",
    "MODEL.FEATURE_DISTANCE.FEATURES", "[]", "MODEL.GMM.MEMORY_SIZE", "50", "MODEL.GMM.WARM_START", "False",
]  # fmt: skip


def test_the_model_by_hand():
    rows = model_scaling(compute=0.5, travelling=6e6, bandwidth=1e7, batch=4)
    assert [row["processes"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    # A ring sends each byte 2 (n - 1) / n times: 0, 1 and 1.5 times 0.6 seconds.
    assert [rows[n - 1]["seconds"] for n in (1, 2, 4)] == pytest.approx([0.5, 1.1, 1.4])
    assert rows[3]["images_per_second"] == pytest.approx(16 / 1.4)
    assert rows[3]["efficiency"] == pytest.approx(0.5 / 1.4)


def test_a_quick_run_of_one_and_two_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = tmp_path / "result.json"
    main = runpy.run_path(str(ROOT / "tools" / "benchmark.py"))["main"]
    main(["scaling", "--repeats", "1", "--size", "32", "32", "--json", str(result), *TINY])
    printed = capsys.readouterr().out
    data = json.loads(result.read_text())
    one, two = data["measured"]["1"], data["measured"]["2"]
    assert one["gradient_bytes"] == two["gradient_bytes"] > 0
    # 10 classes x 5 components: counts, and sums and sums of squares of 64 dimensions in single precision.
    assert 50 * 2 * 64 * 4 < two["mixture_bytes"] < 2 * 50 * 2 * 64 * 4
    assert data["modelled"][0]["seconds"] == one["processor_seconds"]
    assert data["bandwidth"] == pytest.approx(two["gradient_bytes"] / two["gradient_seconds"])
    assert "2 here" in printed and "8 modelled" in printed
    assert list(tmp_path.iterdir()) == [result]
