"""The commands that measure densities and EM: what they compare is the same, they write what they print."""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gmm_anomaly.benchmark import density, em
from gmm_anomaly.benchmark.roofline import density_bytes, roofline
from gmm_anomaly.gmm import GaussianMixtureBank, sinkhorn_assign_all

TINY_EM = ["--size", "64", "48", "--classes", "4", "--dim", "8", "--memory-size", "50"]
BENCHMARK = str(Path(__file__).parents[2] / "tools" / "benchmark.py")


def measured(tmp_path, *arguments):
    result = tmp_path / "result.json"
    runpy.run_path(BENCHMARK)["main"]([*arguments, "--repeats", "1", "--json", str(result)])
    return json.loads(result.read_text())


def test_density(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(density, "MIXTURES", ((3, 2),))
    data = measured(tmp_path, "density", "--pixels", "1000", "--dim", "8", "--broadcast-memory", "1e-4")
    printed = capsys.readouterr().out
    (part,) = data["mixtures"]
    # 2 temporaries of 6 components x 8 dimensions in single precision: 384 bytes a pixel.
    assert part["broadcast_pixels"] == 100_000 // 384
    assert "broadcast on 260 pixels" in printed and "at least 100 wanted" in printed
    times = {name: values["median"] for name, values in part["seconds"].items()}
    assert part["time_ratio"]["median"] == pytest.approx(times["broadcast"] / times["ours"])
    assert part["bare_ratio"]["median"] == pytest.approx(times["ours"] / times["bare product"])
    assert max(part["error"].values()) < 1e-4, "each is the same density"
    assert part["roofline"]["GB"] == pytest.approx(44408e-9) and "of the roofline" in printed


def test_roofline_by_hand():
    moved = density_bytes(pixels=1000, dim=8, classes=3, components=2)
    # 1000 pixels of 8 numbers in and 3 out, and 6 columns of 16 factors and a constant.
    assert moved == 4 * (11000 + 6 * 17) == 44408
    # A copy that takes a second reads and writes 2 x 256 MiB; the work would take 44408 / 2**29 s so.
    by_bandwidth = roofline(moved, seconds=1.0, copying=1.0, product=1e-6)
    assert by_bandwidth["copy_GB_s"] == pytest.approx(2**29 / 1e9)
    assert by_bandwidth["of_bandwidth"] == by_bandwidth["of_roofline"] == pytest.approx(44408 / 2**29)
    by_product = roofline(moved, seconds=1.0, copying=1.0, product=0.5)
    assert by_product["of_roofline"] == 0.5 and by_product["of_bandwidth"] < 1e-3


def test_em(tmp_path, capsys):
    data = measured(
        tmp_path, "em", "--size", "64", "48", "--classes", "4", "--dim", "8", "--memory-size", "50"
    )
    printed = capsys.readouterr().out
    times = {name: values["median"] for name, values in data["seconds"].items()}
    assert data["ratios"]["with EM"]["median"] == pytest.approx(times["loops"] / times["ours"])
    assert data["differences"]["pixels assigned otherwise"] == 0 and "at least 10 wanted" in printed


def test_em_that_differs_from_the_loops_is_not_timed(monkeypatch):
    parser = argparse.ArgumentParser()
    em.add_arguments(parser)
    step = em.Step(parser.parse_args(TINY_EM))
    step.plain.momentum_mean = 0.9
    with pytest.raises(RuntimeError, match="disagree"):
        step.check_agreement()


class LargestAllocation(TorchDispatchMode):
    """Notes the most elements that one operation's new tensor has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, tensor.numel())
        return result


def test_a_step_allocates_nothing_that_grows_with_the_memory():
    def largest(slots: int) -> int:
        torch.manual_seed(0)
        bank = GaussianMixtureBank(3, 2, 4, memory_size=slots, samples_per_update=5)
        features, labels = torch.randn(60, 4), torch.randint(3, (60,))
        with LargestAllocation() as allocations:
            assignment, _ = sinkhorn_assign_all(torch.rand(60, 2), labels, 3)
            bank.record(features, labels, assignment, torch.ones(60, dtype=torch.bool))
            bank.update()
        return allocations.elements

    # What may enter: 6 components x 5 features x 4 dimensions.
    assert largest(10) == largest(10_000) == 120
