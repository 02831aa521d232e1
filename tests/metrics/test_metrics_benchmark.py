"""The measuring command runs, compares equal numbers, and writes what it printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gmm_anomaly.benchmark.metrics import street_frame
from gmm_anomaly.benchmark.timing import ratio, side_by_side, summary, write_json

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"


def test_a_quick_run_from_any_folder(tmp_path):
    result = tmp_path / "new" / "metrics.json"
    command = [sys.executable, str(SCRIPT), "metrics", "--pixels", "20000", "--size", "96", "128"]
    done = subprocess.run(
        [*command, "--repeats", "1", "--json", str(result)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "at least 50 wanted" in done.stdout
    data = json.loads(result.read_text())
    assert (data["settings"]["pixels"], data["settings"]["size"]) == (20000, [96, 128])
    for precision in ("float32", "float16"):
        part = data["pixel"][precision]
        assert part["exact"] and part["difference"] < 1e-12
        assert part["pixels"] == 96 * 128 + (20000 - 96 * 128) // 128 * 128
        assert 0 < part["ratio"]["shortest"] <= part["ratio"]["median"] <= part["ratio"]["longest"]
    assert data["component"]["anomalies"] > 0 and data["component"]["predictions"] > 0
    assert data["frame"]["all of them"]["median"] > 0
    assert [path.name for path in result.parent.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["metrics", "--repeats", "0"], "--repeats must be at least 1, found 0"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_wrong_flags_are_named(arguments, message):
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_frames_hold_all_kinds_of_pixels():
    score, label = street_frame((96, 128), seed=3)
    assert set(label.flat) == {0, 1, 255} and score.dtype == "float32"
    assert score[label == 1].mean() > score[label == 0].mean()
    assert (street_frame((96, 128), seed=3)[0] == score).all()


def test_functions_take_turns_and_the_warm_up_does_not_count():
    calls = []
    seconds = side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    ticks = iter([0.0, 10.0, 12.0])
    assert side_by_side({"a": lambda: None}, 1, clock=lambda: next(ticks)) == {"a": [2.0]}
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert summary([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert ratio([8.0, 9.0], [2.0, 1.0]) == (6.5, 4.0, 9.0)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
