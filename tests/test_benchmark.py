"""``tools/benchmark.py``: what it compares is the same, and it writes what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import benchmark
from tools.benchmarks import memory, metrics, mixtures, models, scaling, timing

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml")
TINY = ["MODEL.GMM.MEMORY_SIZE", "50", "MODEL.FEATURE_DISTANCE.FEATURES", "[]"]


def measured(tmp_path, *arguments):
    result = tmp_path / "new" / "result.json"
    benchmark.main([arguments[0], "--repeats", "1", "--json", str(result), *arguments[1:]])
    assert [path.name for path in result.parent.iterdir()] == ["result.json"]
    data = json.loads(result.read_text())
    assert data["settings"]["clock"] == "processor time" and data["environment"]["cpus"] >= 1
    return data["results"]


def check_ratio(found, slow, fast):
    expected = found["seconds"][slow]["median"] / found["seconds"][fast]["median"]
    assert found["ratios"][f"{slow} / {fast}"]["median"] == pytest.approx(expected)


def test_density(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixtures, "MIXTURES", ((3, 2),))
    [found] = measured(tmp_path, "density", "--pixels", "300", "--broadcast-memory", "5e-4")["mixtures"]
    # 2 temporaries of 6 components x 64 dimensions in single precision: 3072 bytes a pixel.
    assert found["broadcast_pixels"] == 500_000 // 3072
    assert max(found["error"].values()) < 1e-4
    check_ratio(found, "broadcast", "ours")
    assert "broadcast of 162, scaled up" in capsys.readouterr().out


def test_em(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "MIXTURES", ((4, 2),))
    found = measured(tmp_path, "em", "--size", "64", "48", "--memory-size", "50")
    assert found["differences"]["pixels assigned otherwise"] == 0
    assert max(found["differences"].values()) < 1e-5
    check_ratio(found, "loops", "ours")


def test_metrics(tmp_path, capsys):
    found = measured(tmp_path, "metrics", "--pixels", "20000", "--size", "96", "128")
    for part in found["pixel"].values():
        assert part["exact"] and part["difference"] < 1e-12
        assert part["pixels"] == 96 * 128 + (20000 - 96 * 128) // 128 * 128
    assert "anomalies" in capsys.readouterr().out and found["component"]["ratios"]
    score, label = metrics.street_frame((96, 128), seed=3)
    assert set(label.flat) == {0, 1, 255} and score[label == 1].mean() > score[label == 0].mean()


@pytest.mark.parametrize("subject", ["train", "infer", "evaluate"])
def test_twins(tmp_path, subject):
    options = ["--config-file", CONFIG, "--size", "64", "96", "--batch", "2"]
    options += ["--frames", "2"] if subject == "evaluate" else []
    found = measured(tmp_path, subject, *options, *TINY, "MODEL.CHANNELS_LAST", "True")
    if subject == "train":
        check_ratio(found, "gmm", "softmax")
        assert min(found["where"].values()) > 0
        assert found["where"]["backbone"] > found["where"]["optimiser"]
    elif subject == "evaluate":
        assert found["seconds"].keys() == {"the network", "the evaluator", "end of a data set"}
    else:
        assert set(found["ratios"]) == {f"gmm, on {on} / softmax, on {on}" for on in ("logits", "features")}


def test_shares_of_an_iteration_by_hand(monkeypatch):
    """Functions that take so many ticks: a part has no time of another one inside it."""
    time = [0.0]

    def work(seconds, *inside):
        def call(*_):
            time[0] += seconds
            for function in inside:
                function()

        return call

    bank = SimpleNamespace(commit=work(1), update=work(2, lambda: bank.commit()))
    classifier = SimpleNamespace(_record=work(10))
    classifier.losses = work(20, lambda: classifier._record())
    parts = {name: SimpleNamespace(forward=work(100)) for name in ("backbone", "decoder")}
    model = SimpleNamespace(classifier=classifier, bank=bank, compiled=True, **parts)
    optimizer = SimpleNamespace(zero_grad=work(0), step=work(1000))

    def iteration():
        for call in (model.backbone.forward, classifier.losses, bank.update, optimizer.step, work(5)):
            call()

    iteration.loop = SimpleNamespace(model=model, optimizer=optimizer)
    found = models.iteration_shares(iteration, 2, lambda: time[0])
    expected = {"backbone": 100, "classifier": 20, "EM": 13, "optimiser": 1000, "rest": 5}
    assert found == dict.fromkeys(found, 0) | expected


def test_scaling(tmp_path):
    args = benchmark.parse(["scaling", "--repeats", "1", "--size", "32", "32", *TINY])
    scaling._rank(0, 1, str(tmp_path), args)
    found = json.loads((tmp_path / "found.json").read_text())
    # What travels between real processes is counted by tests/gmm/test_ranks.py.
    assert found["mixture_bytes"] > 0 and found["gradient_bytes"] > 0


def test_memory(tmp_path):
    filling = [(step, 100.0 + 5 * step) for step in range(10)]
    flat = [(step, 900.0 + 0.25 * step) for step in range(10, 20)]
    assert memory.slope(filling + flat) == pytest.approx(250)
    found = measured(tmp_path, "memory", "--iterations", "9", "--frames", "8", "--points", "4")["resident_MB"]
    for table in found.values():
        # torch alone is more than 50 MB.
        assert [step for step, _ in table] == [2, 4, 6, 8] and all(50 < size < 20_000 for _, size in table)


def test_all_runs_every_subject_with_its_defaults(tmp_path, monkeypatch):
    given: list[argparse.Namespace] = []
    monkeypatch.setattr(benchmark, "measure", lambda args: given.append(args) or {})
    assert list(measured(tmp_path, "all")) == list(benchmark.ALL)
    assert [args.subject for args in given] == list(benchmark.ALL)
    assert given[0].pixels == 131072 and given[3].size == (512, 1024) and given[0].repeats == 1


def test_functions_take_turns():
    calls = []
    args = SimpleNamespace(device="cpu", repeats=2, threads=1)
    found = timing.side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, args, 3)
    # Two to warm up, three that count.
    assert calls == (["a"] * 5 + ["b"] * 5) * 2 and [len(times) for times in found.values()] == [2, 2]
    ratios = timing.report("by hand", {"a": [8.0, 9.0], "b": [2.0, 1.0]}, {("a", "b"): ""})["ratios"]
    assert ratios == {"a / b": {"median": 6.5, "least": 4.0, "most": 9.0}}
