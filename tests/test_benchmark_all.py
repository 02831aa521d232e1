"""``tools/benchmark.py all``: every subject, with its own defaults, in one file."""

from __future__ import annotations

import json
import runpy
from importlib import import_module
from pathlib import Path

import pytest

from gmm_anomaly.benchmark.all import PARTS
from gmm_anomaly.benchmark.stopwatch import Stopwatch

BENCHMARK = str(Path(__file__).parents[1] / "tools" / "benchmark.py")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_runs_every_subject_with_its_defaults(tmp_path, monkeypatch, device):
    given = {}
    for name in PARTS:
        subject = import_module(f"gmm_anomaly.benchmark.{name}")
        monkeypatch.setattr(subject, "run", lambda args, name=name: given.setdefault(name, vars(args)))
    result = tmp_path / "all.json"
    runpy.run_path(BENCHMARK)["main"](["all", "--repeats", "2", "--device", device, "--json", str(result)])
    assert list(given) == ["density", "em", "metrics", "train", "infer"]
    assert all(args["repeats"] == 2 for args in given.values())
    assert {name: args.get("device") for name, args in given.items()} == {
        "density": device, "em": device, "metrics": None, "train": device, "infer": device,
    }  # fmt: skip
    assert given["density"]["pixels"] == 131072 and given["train"]["size"] == (512, 1024)
    data = json.loads(result.read_text())
    assert data["subject"] == "all" and list(data["results"]) == list(given)


class Work:
    """Functions that take as many ticks of a counted clock as they say."""

    time = 0.0

    def outer(self):
        self.time += 1
        self.inner()
        self.time += 2
        self.inner()

    def inner(self):
        self.time += 10

    def fails(self):
        self.time += 5
        raise KeyError("x")


def test_a_part_has_the_time_that_no_part_inside_it_has():
    work = Work()
    watch = Stopwatch(lambda: work.time)
    with watch.around([(work, "outer", "outer"), (work, "inner", "inner"), (work, "fails", "inner")]):
        with watch.part("rest"):
            work.time += 100
            work.outer()
            with pytest.raises(KeyError):
                work.fails()
    assert watch.seconds == {"outer": 3, "inner": 25, "rest": 100}
    work.outer()
    assert watch.seconds["outer"] == 3, "functions are timed inside only"
