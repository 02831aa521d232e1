"""The bank in two and three real gloo processes against one process that sees all their pixels.

Run as a script, this file is one rank: it writes what each scenario left behind into a folder. Processes are
started by path, so that they need no importable ``tests`` package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.memory import HELD

CLASSES, COMPONENTS, DIM = 4, 2, 8
SLOTS, SAMPLES = 6, 4
STEPS = 9
State = dict[str, Tensor]
Pixels = tuple[Tensor, Tensor, Tensor, Tensor]


# What every rank does.


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
    """Class 0 on the first rank only, class 1 on the last one only, class 2 rarely on all, class 3 never."""
    generator = torch.Generator().manual_seed(1000 + 100 * step + rank)
    size = 0 if step == 1 and rank == 0 else 10
    features = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
    labels = torch.full((size,), 0 if rank == 0 else 1)
    labels[:2] = 2
    return features, labels, torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)


def measure_step(rank: int) -> int:
    """Bytes in all the tensors that this rank gives to, or gets from, collectives in an update step."""
    bank = GaussianMixtureBank(19, 5, 64, memory_size=32, warm_start_features=4)
    for index in range(19):
        bank.initialise(
            index, F.normalize(torch.randn(8, 64, generator=torch.Generator().manual_seed(1)), dim=1)
        )
    bank.broadcast()
    labels = torch.arange(2000) % 19
    features = F.normalize(torch.randn(2000, 64), dim=1)
    sent = []

    def counted(collective: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            for argument in (*arguments, *keywords.values()):
                tensors = argument if isinstance(argument, list) else [argument]
                sent.extend(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
            return collective(*arguments, **keywords)

        return call

    names = [
        name
        for name in dir(dist)
        if name.startswith(("all_", "broadcast", "gather", "reduce", "scatter", "send"))
    ]
    originals = {name: getattr(dist, name) for name in names if callable(getattr(dist, name))}
    for name, collective in originals.items():
        setattr(dist, name, counted(collective))
    bank.record(features, labels, torch.arange(2000) % 5, torch.ones(2000, dtype=torch.bool))
    bank.update()
    for name, collective in originals.items():
        setattr(dist, name, collective)
    assert len(sent) >= 3 and bank.memory.count.min() == 20 + 1
    return sum(sent)


def run_rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    results: dict[str, Any] = {}

    bank = make_bank(rank)
    results["constructed"] = state(bank)
    bank.broadcast()
    results["broadcast"] = state(bank)
    results["trained"] = train(bank, [rank], range(STEPS))
    bank.broadcast()
    results["broadcast again"] = state(bank)

    bank = make_bank(rank, warm_start_features=40, memory_size=64)
    bank.broadcast()
    results["warm"] = []
    for step in range(9):
        bank.record(*warm_pixels(step, rank))
        bank.update()
        results["warm"].append(state(bank))

    if world == 2:
        results["bytes"] = measure_step(rank)
        for save_memory in (False, True):
            path = folder / f"checkpoint_{save_memory}.pt"
            first = make_bank(rank, save_memory=save_memory)
            first.broadcast()
            results[f"saved_{save_memory}"] = train(first, [rank], range(6))[-1]
            if rank == 0:
                torch.save(first.state_dict(), path)
            dist.barrier()
            resumed = make_bank(rank + 10, save_memory=save_memory)
            resumed.load_state_dict(torch.load(path, weights_only=True))
            resumed.broadcast()
            states = [state(resumed)]
            for step in range(10, 18):
                states += train(resumed, [rank], range(step, step + 1))
            results[f"resumed_{save_memory}"] = states

        path = folder / "waiting.pt"
        first = make_bank(rank, warm_start_features=40)
        first.broadcast()
        first.record(*warm_pixels(0, rank))
        first.update()
        if rank == 0:
            torch.save(first.state_dict(), path)
        dist.barrier()
        resumed = make_bank(rank + 10, warm_start_features=40)
        resumed.load_state_dict(torch.load(path, weights_only=True))
        resumed.broadcast()
        results["waiting"] = state(resumed)

    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


# What a test sees.


def run_processes(world: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank of a real process group left behind."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_processes(2, tmp_path_factory.mktemp("two_ranks"))


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_processes(3, tmp_path_factory.mktemp("three_ranks"))


@pytest.fixture(params=["two_ranks", "three_ranks"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return request.getfixturevalue(request.param)


def shared(result: State) -> State:
    """The part of the state that all ranks have in common: not the features that each brought itself."""
    own = ("memory.ring", "memory.slot_state", "warm_start.features", "warm_start.count")
    return {name: value for name, value in result.items() if name not in own}


def assert_identical(states: list[State]) -> None:
    first = shared(states[0])
    for other in states[1:]:
        for name, value in shared(other).items():
            assert torch.equal(value, first[name]), name


def held_features(states: list[State]) -> tuple[Tensor, Tensor]:
    """(C*M,) number and (C*M, D) float64 sum of the features that the ranks hold together."""
    number = torch.zeros(CLASSES * COMPONENTS, dtype=torch.int64)
    total = torch.zeros(CLASSES * COMPONENTS, DIM, dtype=torch.float64)
    for each in states:
        held = each["memory.slot_state"] == HELD
        number += held.sum(1)
        total += (each["memory.ring"].double() * held[..., None]).sum(1)
    return number, total


def test_ranks_differ_until_rank_0_is_broadcast(ranks):
    assert not torch.equal(ranks[0]["constructed"]["means"], ranks[1]["constructed"]["means"])
    assert_identical([rank["broadcast"] for rank in ranks])
    assert torch.equal(ranks[0]["broadcast"]["means"], ranks[0]["constructed"]["means"])


def test_state_is_identical_on_all_ranks_after_every_step(ranks):
    for step in range(STEPS):
        assert_identical([rank["trained"][step] for rank in ranks])


def test_ranks_equal_one_process_with_all_pixels(ranks):
    world = list(range(len(ranks)))
    labels = [[set(pixels(step, rank)[1].tolist()) - {255} for rank in world] for step in range(STEPS)]
    assert labels[2][0] and not labels[2][1] and len(pixels(3, 1)[0]) == 0 and not any(labels[7])
    assert any(3 in labels[step][1] and 3 not in labels[step][0] for step in range(STEPS))

    bank = make_bank(0)
    expected = train(bank, world, range(STEPS))
    for step in range(STEPS):
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
    entered = sum(
        min(SAMPLES, int(((batch[1] == 0) & (batch[2] == 0) & batch[3]).sum()))
        for batch in (union([pixels(step, rank) for rank in world]) for step in range(STEPS))
    )
    assert entered > 2 * SLOTS


def test_what_other_ranks_held_counts_as_lost_after_another_broadcast(ranks):
    states = [rank["broadcast again"] for rank in ranks]
    assert_identical(states)
    for name in ("memory.count", "memory.total", "memory.total_square", "means", "scales"):
        assert torch.equal(states[0][name], ranks[0]["trained"][-1][name]), name
    held = ranks[0]["trained"][-1]["memory.slot_state"] == HELD
    number, total = held_features(states)
    assert torch.equal(number, held.sum(1)) and (number < states[0]["memory.count"]).any()
    assert torch.equal(states[0]["memory.lost_count"], states[0]["memory.count"] - number)
    torch.testing.assert_close(
        states[0]["memory.lost_total"], states[0]["memory.total"] - total, rtol=0, atol=1e-9
    )


def test_a_warm_start_takes_the_features_of_all_ranks(ranks):
    world = len(ranks)
    seen: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    started_at: dict[int, int] = {}
    for step in range(9):
        states = [rank["warm"][step] for rank in ranks]
        assert_identical(states)
        for rank in range(world):
            features, labels, *_ = warm_pixels(step, rank)
            for index in range(CLASSES):
                seen[index].extend(features[labels == index].double())
        count = states[0]["memory.count"].view(CLASSES, COMPONENTS)
        total = states[0]["memory.total"].view(CLASSES, COMPONENTS, DIM)
        for index in range(CLASSES):
            if index not in started_at:
                assert bool(states[0]["started"][index]) == (len(seen[index]) >= 40)
                waiting = 0 if len(seen[index]) >= 40 else len(seen[index])
                assert sum(int(each["warm_start.count"][index]) for each in states) == waiting
                if states[0]["started"][index]:
                    started_at[index] = step
                    assert count[index].sum() == len(seen[index])
                    expected = torch.stack(seen[index]).sum(0)
                    torch.testing.assert_close(total[index].sum(0), expected, rtol=0, atol=1e-5)
                    number, _ = held_features(states)
                    assert torch.equal(number.view(CLASSES, COMPONENTS), count)
                else:
                    assert not count[index].any() and not states[0]["fitted"][index].any()
    assert set(started_at) >= {0, 1} and 3 not in started_at


def test_bytes_of_a_step(two_ranks, capsys):
    for rank in two_ranks:
        with capsys.disabled():
            print(f"\nan update of 19 x 5 components of 64 dimensions: {rank['bytes']} bytes in collectives")
        # The sums alone, in single precision, are 19 * 5 * 2 * 64 * 4 bytes.
        assert 48_640 < rank["bytes"] <= 60_000


@pytest.mark.parametrize("save_memory", [False, True])
def test_ranks_resume_together_from_what_rank_0_saved(two_ranks, save_memory):
    history = [rank[f"resumed_{save_memory}"] for rank in two_ranks]
    before = two_ranks[0][f"saved_{save_memory}"]
    first = [states[0] for states in history]
    for name in ("means", "scales", "memory.count", "memory.total", "memory.total_square", "memory.pointer"):
        torch.testing.assert_close(first[0][name], before[name], rtol=0, atol=1e-6)
    number, _ = held_features(first)
    assert bool(number.any()) == save_memory
    assert torch.equal(first[0]["memory.lost_count"], before["memory.count"] - number)

    for states in zip(*history, strict=True):
        assert_identical(list(states))
        found = states[0]
        number, total = held_features(list(states))
        assert torch.equal(found["memory.count"], number + found["memory.lost_count"])
        assert found["memory.lost_count"].ge(0).all()
        assert found["memory.total_square"].min() > -1e-6
        torch.testing.assert_close(
            found["memory.total"], total + found["memory.lost_total"], rtol=0, atol=1e-5
        )
        # Unit vectors: their squares sum to their number, those of the average included.
        torch.testing.assert_close(
            found["memory.total_square"].sum(1), found["memory.count"].double(), rtol=0, atol=1e-5
        )
        assert found["scales"][found["fitted"]].min() >= 0.1 * (1 - 1e-6)
    # The frequent classes have taken K new features by then: nothing of the average is left.
    assert history[0][-1]["memory.lost_count"][: 3 * COMPONENTS].tolist() == [0] * 3 * COMPONENTS


def test_waiting_features_count_once_after_a_resume(two_ranks):
    features, labels, *_ = warm_pixels(0, 0)
    assert two_ranks[0]["waiting"]["warm_start.count"].tolist() == [8, 0, 2, 0]
    assert torch.equal(two_ranks[0]["waiting"]["warm_start.features"][0, :8], features[labels == 0])
    assert not two_ranks[1]["waiting"]["warm_start.count"].any()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
