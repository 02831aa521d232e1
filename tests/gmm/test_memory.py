"""The feature memory against plain Python queues, and what a checkpoint keeps of it."""

from __future__ import annotations

import io
from collections import deque

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmm_anomaly.gmm import FeatureMemory
from gmm_anomaly.gmm.memory import HELD

DIM = 3


class QueueOracle:
    """One ``deque`` of float64 vectors per component, and the pixels that ``torch.linspace`` chooses."""

    def __init__(self, components: int, slots: int, dtype: torch.dtype = torch.float32) -> None:
        self.queues: list[deque[Tensor]] = [deque(maxlen=slots) for _ in range(components)]
        self.entered = [0] * components
        self.slots, self.dtype = slots, dtype

    def add_batch(self, features: Tensor, component: Tensor, samples: int) -> None:
        for index, queue in enumerate(self.queues):
            own = features[component == index].to(self.dtype).double()
            if len(own) > samples:
                own = own[torch.linspace(0, len(own) - 1, samples).long()]
            queue.extend(own)
            self.entered[index] += len(own)

    def sums(self) -> tuple[Tensor, Tensor]:
        stacked = [
            torch.stack(list(queue)) if queue else torch.zeros(1, DIM).double() for queue in self.queues
        ]
        return torch.stack([s.sum(0) for s in stacked]), torch.stack([s.square().sum(0) for s in stacked])


def content(memory: FeatureMemory, index: int) -> Tensor:
    """A component's features, oldest first, float64."""
    count, pointer = int(memory.count[index]), int(memory.pointer[index])
    order = (torch.arange(count) + pointer - count) % memory.slots
    return memory.ring[index, order].double()


def assert_equal_to_oracle(memory: FeatureMemory, oracle: QueueOracle) -> None:
    assert memory.count.tolist() == [len(queue) for queue in oracle.queues]
    assert memory.pointer.tolist() == [entered % oracle.slots for entered in oracle.entered]
    total, total_square = oracle.sums()
    torch.testing.assert_close(memory.total, total, rtol=0, atol=1e-12)
    torch.testing.assert_close(memory.total_square, total_square, rtol=0, atol=1e-12)
    for index, queue in enumerate(oracle.queues):
        assert torch.equal(
            content(memory, index), torch.stack(list(queue)) if queue else torch.zeros(0, DIM).double()
        )


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, int, list[list[int]]]:
    slots = draw(st.integers(1, 7))
    samples = draw(st.integers(1, slots))
    components = draw(st.integers(1, 3))
    batch = st.lists(st.integers(-1, components), max_size=3 * samples)
    return slots, samples, components, draw(st.lists(batch, max_size=12))


@settings(max_examples=30, deadline=None)
@given(histories(), st.sampled_from([torch.float32, torch.float16]), st.integers(0, 1000))
# S == K: exact fit, nothing, wrap, choice.
@example((4, 4, 1, [[0] * 4, [], [0] * 4, [0] * 9]), torch.float32, 0)
# A ring of a single slot; no component at all.
@example((1, 1, 2, [[0, 1], [1, 1, 0], [-1, 2]]), torch.float16, 0)
# Full without a wrap, then over the end.
@example((5, 3, 1, [[0] * 3, [0] * 2, [0], [0] * 3]), torch.float32, 0)
def test_memory_is_a_queue(history, dtype, seed):
    slots, samples, components, batches = history
    generator = torch.Generator().manual_seed(seed)
    memory = FeatureMemory(components, slots, DIM, dtype=dtype)
    oracle = QueueOracle(components, slots, dtype)
    for batch in batches:
        component = torch.tensor(batch, dtype=torch.int64)
        features = torch.randn(len(batch), DIM, generator=generator)
        oracle.add_batch(features, component, samples)
        # What does not enter leaves no trace.
        features[(component < 0) | (component >= components)] = torch.nan
        memory.add_batch(features, component, samples)
        assert_equal_to_oracle(memory, oracle)


def saved(memory: FeatureMemory) -> dict[str, Tensor]:
    """The state dict, once through a file."""
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def random_batch(step: int, size: int, components: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, DIM, generator=generator), torch.randint(
        0, components, (size,), generator=generator
    )


def trained(slots: int, steps: int, **options: object) -> FeatureMemory:
    memory = FeatureMemory(2, slots, DIM, **options)
    for step in range(steps):
        memory.add_batch(*random_batch(step, 7, 2), 3)
    return memory


@pytest.mark.parametrize("steps", [1, 20], ids=["partly filled", "full"])
def test_without_the_ring_old_features_leave_as_their_average(steps):
    slots = 9
    memory = trained(slots, steps)
    state = saved(memory)
    assert set(state) == {"count", "pointer", "total", "total_square"}
    resumed = FeatureMemory(2, slots, DIM)
    resumed.load_state_dict(state)
    first_count = memory.count.clone()
    live: list[list[Tensor]] = [[], []]
    for step in range(200, 212):
        features, component = random_batch(step, 3, 2)
        resumed.add_batch(features, component, 3)
        for index in range(2):
            live[index].extend(features[component == index].double())
            newer = live[index][-slots:]
            kept = min(int(first_count[index]), slots - len(newer))
            assert resumed.count[index] == kept + len(newer)
            share = kept / int(first_count[index])
            zero = torch.zeros(DIM, dtype=torch.float64)
            expected = share * memory.total[index] + sum(newer, zero)
            expected_square = share * memory.total_square[index] + sum((x.square() for x in newer), zero)
            torch.testing.assert_close(resumed.total[index], expected, rtol=0, atol=1e-9)
            torch.testing.assert_close(resumed.total_square[index], expected_square, rtol=0, atol=1e-9)
    assert min(len(features) for features in live) >= slots
    assert resumed.lost_count.tolist() == [0, 0]
    assert not resumed.lost_total.any() and not resumed.lost_total_square.any()


@pytest.mark.parametrize("save_ring", [False, True])
def test_a_second_interruption_before_the_old_features_have_left(save_ring):
    slots = 9
    first = FeatureMemory(2, slots, DIM, save_ring=save_ring)
    first.load_state_dict(saved(trained(slots, 20)), strict=True)
    first.add_batch(*random_batch(300, 4, 2), 3)
    second = FeatureMemory(2, slots, DIM, save_ring=save_ring)
    second.load_state_dict(saved(first))
    for name in ("count", "pointer", "total", "total_square"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    held = (first.slot_state == HELD).sum(1) if save_ring else torch.zeros(2, dtype=torch.int64)
    assert torch.equal(second.lost_count, first.count - held)
    new_features_alone_count(second)


def new_features_alone_count(memory: FeatureMemory) -> None:
    """Fill all rings anew: whatever the statistics still had of older features is gone."""
    features = torch.randn(2 * memory.slots, DIM, generator=torch.Generator().manual_seed(2))
    memory.add_batch(features, torch.arange(2).repeat(memory.slots), memory.slots)
    stored = memory.ring[:, : memory.slots].double()
    torch.testing.assert_close(memory.total, stored.sum(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(memory.total_square, stored.square().sum(1), rtol=0, atol=1e-9)
    assert memory.count.tolist() == [memory.slots] * 2


@pytest.mark.parametrize(
    "old, new",
    [
        ({}, {"save_ring": True}),
        ({"save_ring": True}, {}),
        # A ring of another type is not the one that was summed.
        ({"save_ring": True}, {"save_ring": True, "dtype": torch.float16}),
    ],
)
def test_checkpoints_with_and_without_a_ring_are_interchangeable(old, new):
    memory = trained(9, 20, **old)
    resumed = trained(9, 6, **new)  # what it held itself must not count any more
    resumed.load_state_dict(saved(memory), strict=True)
    assert torch.equal(resumed.lost_count, memory.count)
    assert torch.equal(resumed.lost_total, memory.total)
    new_features_alone_count(resumed)


@pytest.mark.parametrize("save_ring", [False, True])
@pytest.mark.parametrize("slots", [4, 12], ids=["smaller", "larger"])
def test_a_memory_of_another_size_keeps_the_averages(slots, save_ring):
    old = trained(9, 20, save_ring=save_ring)
    new = FeatureMemory(2, slots, DIM, save_ring=save_ring)
    new.load_state_dict(saved(old), strict=True)
    assert new.count.tolist() == [min(9, slots)] * 2
    for name in ("total", "total_square"):
        average = getattr(new, name) / new.count[:, None]
        torch.testing.assert_close(average, getattr(old, name) / 9, rtol=0, atol=1e-12)
    for step in range(3):
        new.add_batch(*random_batch(400 + step, 9, 2), slots // 2)
        restored = FeatureMemory(2, slots, DIM, save_ring=save_ring)
        restored.load_state_dict(saved(new))
        assert restored.lost_count.ge(0).all()
    new_features_alone_count(new)
