"""The bank in three real gloo processes against one process that sees all their pixels.

With the name of a rank, this file is that rank: it writes what each scenario left behind into a folder.
"""

from __future__ import annotations

import multiprocessing
import runpy
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, collectives
from gmm_anomaly.gmm.memory import HELD

WORLD = 3
CLASSES, COMPONENTS, DIM = 4, 2, 8
SLOTS, SAMPLES = 6, 4
STEPS = 9
State = dict[str, Tensor]
Pixels = tuple[Tensor, Tensor, Tensor, Tensor]


def make_bank(rank: int, **options: Any) -> GaussianMixtureBank:
    torch.manual_seed(rank)
    options = {"memory_size": SLOTS, "samples_per_update": SAMPLES, "momentum_mean": 0.9, **options}
    return GaussianMixtureBank(CLASSES, COMPONENTS, DIM, **options)


def pixels(step: int, rank: int) -> Pixels:
    """A rank's batch: 0 to 60 pixels, with the batches that a rank may be unlucky to get."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    size = 40 + 10 * rank if step % 2 else 12 + rank
    if step == 3 and rank == 1 or step == 6 and rank != 1:
        size = 0
    features = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
    labels = torch.randint(0, CLASSES - 1, (size,), generator=generator)
    labels[torch.rand(size, generator=generator) < 0.1] = 255
    if step == 2 and rank == 1 or step == 7:
        labels.fill_(255)
    if step == 4:
        labels[labels == rank] = 255
    if step == 5 and rank == 1:
        labels[::2] = CLASSES - 1
    assignment = torch.randint(0, COMPONENTS, (size,), generator=generator)
    return features, labels, assignment, torch.rand(size, generator=generator) < 0.8


def union(batches: list[Pixels]) -> Pixels:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def state(bank: GaussianMixtureBank) -> State:
    return {name: buffer.clone() for name, buffer in bank.named_buffers()}


def train(bank: GaussianMixtureBank, ranks: list[int], steps: range) -> list[State]:
    """Steps on the pixels of the given ranks as one batch; the last one commits two batches at once."""
    states = []
    for step in steps:
        bank.record(*union([pixels(step, rank) for rank in ranks]))
        if step == steps[-1]:
            bank.record(*union([pixels(step + 50, rank) for rank in ranks]))
        if step == 1:
            bank.commit()
        else:
            bank.update()
        states.append(state(bank))
    return states


def warm_pixels(step: int, rank: int) -> Pixels:
    """Class 0 on the first rank only, class 1 on the others only, class 2 rarely on all, class 3 never."""
    generator = torch.Generator().manual_seed(1000 + 100 * step + rank)
    size = 0 if step == 1 and rank == 0 else 10
    features = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
    labels = torch.full((size,), 0 if rank == 0 else 1)
    labels[:2] = 2
    return features, labels, torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)


def bytes_of_a_step() -> int:
    """Of the tensors that this rank gives to collectives in an update step of Cityscapes' mixtures."""
    bank = GaussianMixtureBank(19, 5, 64, memory_size=32)
    bank.broadcast()
    index, sent = torch.arange(2000), []

    def counted(function: Any) -> Any:
        return lambda tensor: sent.append(tensor.nbytes) or function(tensor)

    bank.record(F.normalize(torch.randn(2000, 64), dim=1), index % 19, index % 5, index >= 0)
    sums, gather = collectives.sum_over_ranks, collectives.gather_stack
    with patch.multiple(collectives, sum_over_ranks=counted(sums), gather_stack=counted(gather)):
        bank.update()
    assert bank.memory.count.min() == 20
    return sum(sent)


def resumed_bank(rank: int, folder: Path, first: GaussianMixtureBank, **options: Any) -> GaussianMixtureBank:
    """Another bank on every rank, with what rank 0 saved of ``first``."""
    path = folder / f"{'-'.join(['of', *options])}.pt"
    if rank == 0:
        torch.save(first.state_dict(), path)
    dist.barrier()
    resumed = make_bank(rank + 10, **options)
    resumed.load_state_dict(torch.load(path, weights_only=True))
    resumed.broadcast()
    return resumed


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = {"init_method": f"file://{folder / 'rendezvous'}", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, **rendezvous)
    results: dict[str, Any] = {"bytes": bytes_of_a_step()}
    bank = make_bank(rank)
    results["constructed"] = state(bank)
    bank.broadcast()
    results["broadcast"] = state(bank)
    results["trained"] = train(bank, [rank], range(STEPS))
    for name, options in (("statistics", {}), ("memory", {"save_memory": True})):
        first = make_bank(rank, **options)
        first.broadcast()
        results[f"{name} saved"] = train(first, [rank], range(6))[-1]
        resumed = resumed_bank(rank, folder, first, **options)
        results[f"{name} resumed"] = [state(resumed)]
        for step in range(10, 18):
            results[f"{name} resumed"] += train(resumed, [rank], range(step, step + 1))

    bank = make_bank(rank, warm_start_features=40, memory_size=64)
    bank.broadcast()
    results["warm"] = []
    for step in range(9):
        bank.record(*warm_pixels(step, rank))
        bank.update()
        results["warm"].append(state(bank))
        if step == 0:
            resumed = resumed_bank(rank, folder, bank, warm_start_features=40, memory_size=64)
            results["waiting"] = state(resumed)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of a real process group left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    # torch is imported once, in the process that the ranks are forked from.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    calls = [(__file__, {"RANK": rank, "FOLDER": folder}, "rank") for rank in range(WORLD)]
    processes = [context.Process(target=runpy.run_path, args=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=150)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * WORLD
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_identical(states: list[State]) -> None:
    """But for the features that each rank brought itself."""
    own = ("memory.ring", "memory.slot_state", "warm_start.features", "warm_start.count")
    for other in states[1:]:
        for name, value in other.items():
            assert name in own or torch.equal(value, states[0][name]), name


def held_features(states: list[State]) -> tuple[Tensor, Tensor]:
    """(C*M,) number and (C*M, D) float64 sum of the features that the ranks hold together."""
    held = torch.stack([each["memory.slot_state"] == HELD for each in states])
    rings = torch.stack([each["memory.ring"].double() for each in states])
    return held.sum((0, 2)), (rings * held[..., None]).sum((0, 2))


def test_ranks_differ_until_rank_0_is_broadcast(ranks):
    assert not torch.equal(ranks[0]["constructed"]["means"], ranks[1]["constructed"]["means"])
    assert_identical([rank["broadcast"] for rank in ranks])
    assert torch.equal(ranks[0]["broadcast"]["means"], ranks[0]["constructed"]["means"])


def test_ranks_equal_one_process_with_all_pixels(ranks):
    world = list(range(WORLD))
    labels = [[set(pixels(step, rank)[1].tolist()) - {255} for rank in world] for step in range(STEPS)]
    assert labels[2][0] and not labels[2][1] and len(pixels(3, 1)[0]) == 0 and not any(labels[7])
    assert any(3 in labels[step][1] and 3 not in labels[step][0] for step in range(STEPS))

    bank = make_bank(0)
    expected = train(bank, world, range(STEPS))
    for step in range(STEPS):
        assert_identical([rank["trained"][step] for rank in ranks])
        found = ranks[0]["trained"][step]
        for name in ("memory.count", "memory.pointer", "seen", "fitted", "started"):
            assert torch.equal(found[name], expected[step][name]), (step, name)
        for name in ("memory.total", "memory.total_square", "means", "scales"):
            torch.testing.assert_close(
                found[name], expected[step][name], rtol=0, atol=1e-6, msg=f"{step} {name}"
            )
        slots = expected[step]["memory.slot_state"] == HELD
        holders = torch.stack([rank["trained"][step]["memory.slot_state"] == HELD for rank in ranks])
        assert torch.equal(holders.sum(0), slots.long())
        for rank, holder in zip(ranks, holders, strict=True):
            ring = rank["trained"][step]["memory.ring"]
            assert torch.equal(ring[holder], expected[step]["memory.ring"][holder])
    # The rings of the frequent classes have gone around more than once.
    assert bank.memory.count[: 3 * COMPONENTS].tolist() == [SLOTS] * 3 * COMPONENTS
    together = [union([pixels(step, rank) for rank in world]) for step in range(STEPS)]
    entered = [int(((batch[1] == 0) & (batch[2] == 0) & batch[3]).sum()) for batch in together]
    assert sum(min(SAMPLES, number) for number in entered) > 2 * SLOTS


def test_a_warm_start_takes_the_features_of_all_ranks(ranks):
    seen: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    started: set[int] = set()
    for step in range(9):
        states = [rank["warm"][step] for rank in ranks]
        assert_identical(states)
        for rank in range(WORLD):
            features, labels, *_ = warm_pixels(step, rank)
            for index in range(CLASSES):
                seen[index].extend(features[labels == index].double())
        count = states[0]["memory.count"].view(CLASSES, COMPONENTS)
        total = states[0]["memory.total"].view(CLASSES, COMPONENTS, DIM)
        for index in set(range(CLASSES)) - started:
            enough = len(seen[index]) >= 40
            assert bool(states[0]["started"][index]) == enough
            waiting = sum(int(each["warm_start.count"][index]) for each in states)
            assert waiting == (0 if enough else len(seen[index]))
            if not enough:
                assert not count[index].any() and not states[0]["fitted"][index].any()
                continue
            started.add(index)
            assert count[index].sum() == len(seen[index])
            expected = torch.stack(seen[index]).sum(0)
            torch.testing.assert_close(total[index].sum(0), expected, rtol=0, atol=1e-5)
            number, _ = held_features(states)
            assert torch.equal(number.view(CLASSES, COMPONENTS), count)
    assert started >= {0, 1} and 3 not in started


def test_bytes_of_a_step(ranks):
    for rank in ranks:
        # The sums alone, in single precision, are 19 * 5 * 2 * 64 * 4 bytes.
        assert 48_640 < rank["bytes"] <= 60_000


@pytest.mark.parametrize("saved", ["statistics", "memory"])
def test_ranks_resume_together_from_what_rank_0_saved(ranks, saved):
    """What other ranks held counts as lost, and leaves as its average."""
    history = [rank[f"{saved} resumed"] for rank in ranks]
    before = ranks[0][f"{saved} saved"]
    first = [states[0] for states in history]
    for name in ("means", "scales", "memory.count", "memory.total", "memory.total_square", "memory.pointer"):
        torch.testing.assert_close(first[0][name], before[name], rtol=0, atol=1e-6)
    number, _ = held_features(first)
    assert bool(number.any()) == (saved == "memory")
    assert torch.equal(first[0]["memory.lost_count"], before["memory.count"] - number)

    for states in map(list, zip(*history, strict=True)):
        assert_identical(states)
        found = states[0]
        number, total = held_features(states)
        assert torch.equal(found["memory.count"], number + found["memory.lost_count"])
        assert found["memory.lost_count"].ge(0).all()
        assert found["memory.total_square"].min() > -1e-6
        together = total + found["memory.lost_total"]
        torch.testing.assert_close(found["memory.total"], together, rtol=0, atol=1e-5)
        # Unit vectors: their squares sum to their number, those of the average included.
        squares = found["memory.total_square"].sum(1)
        torch.testing.assert_close(squares, found["memory.count"].double(), rtol=0, atol=1e-5)
        assert found["scales"][found["fitted"]].min() >= 0.1 * (1 - 1e-6)
    # The frequent classes have taken K new features by then: nothing of the average is left.
    assert history[0][-1]["memory.lost_count"][: 3 * COMPONENTS].tolist() == [0] * 3 * COMPONENTS


def test_waiting_features_count_once_after_a_resume(ranks):
    features, labels, *_ = warm_pixels(0, 0)
    assert ranks[0]["waiting"]["warm_start.count"].tolist() == [8, 0, 2, 0]
    assert torch.equal(ranks[0]["waiting"]["warm_start.features"][0, :8], features[labels == 0])
    assert not any(rank["waiting"]["warm_start.count"].any() for rank in ranks[1:])


if __name__ == "rank":
    run_rank(RANK, FOLDER)  # noqa: F821, given by who runs this path
