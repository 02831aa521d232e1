"""The bank: what enters the memory, and what the EM step changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank

CLASSES, COMPONENTS, DIM = 4, 2, 6


def make_bank(seed: int = 0, **options: Any) -> GaussianMixtureBank:
    torch.manual_seed(seed)
    options = {"memory_size": 8, "samples_per_update": 4, **options}
    return GaussianMixtureBank(CLASSES, COMPONENTS, DIM, **options)


class Batch:
    """N random pixels with every class, every component and no wrong prediction unless asked for."""

    def __init__(self, size: int, seed: int, correct: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.features = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
        self.labels = torch.arange(size) % CLASSES
        self.assignment = torch.randint(0, COMPONENTS, (size,), generator=generator)
        self.correct = torch.rand(size, generator=generator) < correct

    def record(self, bank: GaussianMixtureBank) -> None:
        bank.record(self.features, self.labels, self.assignment, self.correct)

    def stored(self, samples: int) -> list[Tensor]:
        """Oracle: the float64 features that enter each component of an empty memory."""
        chosen = []
        for index in range(CLASSES * COMPONENTS):
            own = (self.labels * COMPONENTS + self.assignment == index) & self.correct
            own &= (self.labels >= 0) & (self.labels < CLASSES)
            found = self.features[own].double()
            if len(found) > samples:
                found = found[torch.linspace(0, len(found) - 1, samples).long()]
            chosen.append(found)
        return chosen


def snapshot(bank: GaussianMixtureBank) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in bank.named_buffers()}


def changed(bank: GaussianMixtureBank, before: dict[str, Tensor]) -> set[str]:
    return {name for name, buffer in bank.named_buffers() if not torch.equal(buffer, before[name])}


def assert_memory_holds(bank: GaussianMixtureBank, features: list[Tensor]) -> None:
    assert bank.memory.count.tolist() == [len(own) for own in features]
    total = torch.stack([own.sum(0) for own in features])
    torch.testing.assert_close(bank.memory.total, total.double(), rtol=0, atol=1e-12)


def test_recording_changes_nothing_and_committing_the_memory_only():
    bank, batch = make_bank(fill_slots=3), Batch(60, seed=0)
    before = snapshot(bank)
    batch.record(bank)
    assert changed(bank, before) == set()
    bank.commit()
    assert changed(bank, before) <= {"seen"} | {name for name in before if name.startswith("memory.")}
    assert_memory_holds(bank, batch.stored(samples=4))


def test_features_need_no_gradient_and_no_particular_type():
    bank, batch = make_bank(), Batch(30, seed=1)
    features = batch.features.half().requires_grad_()
    bank.record(features, batch.labels.int(), batch.assignment.int(), batch.correct)
    bank.update()
    batch.features = features.detach().float()
    assert_memory_holds(bank, batch.stored(samples=4))
    assert not bank.means.requires_grad


def test_what_never_enters():
    """Pixels without a class, with a component outside their class, not finite, or predicted wrongly."""
    bank, batch = make_bank(), Batch(120, seed=2, correct=0.6)
    batch.labels[:16:2] = torch.tensor([-1, CLASSES, 255, -100] * 2)
    batch.assignment[1:16:4] = torch.tensor([COMPONENTS, -1, 255, -100])
    batch.features[batch.labels == 1] = torch.inf
    batch.features[20, 2] = torch.nan
    batch.record(bank)
    bank.update()
    inside = (batch.assignment >= 0) & (batch.assignment < COMPONENTS)
    batch.correct &= inside & batch.features.isfinite().all(1)
    assert_memory_holds(bank, batch.stored(samples=4))
    assert not bank.fitted[1].any() and bank.fitted[[0, 2, 3]].all()
    assert all(buffer.isfinite().all() for buffer in (bank.means, bank.scales))


def test_discarded_batches_leave_nothing_behind():
    bank = make_bank()
    before = snapshot(bank)
    Batch(40, seed=3).record(bank)
    bank.discard_recorded()
    bank.commit()
    assert changed(bank, before) == set()


def test_wrongly_predicted_pixels_enter_until_enough_are_stored():
    bank = make_bank(fill_slots=6, memory_size=20)
    wrong = Batch(80, seed=7, correct=0.0)
    counts = []
    for _ in range(4):
        wrong.record(bank)
        bank.commit()
        counts.append(set(bank.memory.count.tolist()))
    assert counts == [{4}, {8}, {8}, {8}]
    Batch(80, seed=8).record(bank)
    bank.commit()
    assert set(bank.memory.count.tolist()) == {12}


def expected_step(bank: GaussianMixtureBank, features: list[Tensor], keep: float, keep_scale: float):
    """GMMSeg's step in float64 (Eq. 9 as released), one component at a time."""
    means, scales = F.normalize(bank.means.double(), dim=-1).flatten(0, 1), bank.scales.double().flatten(0, 1)
    for index, own in enumerate(features):
        if not len(own):
            continue
        direction = own.sum(0) / own.sum(0).norm()
        deviation = ((own - direction).square().mean(0) + bank.variance_floor).sqrt()
        means[index] = keep * means[index] + (1 - keep) * direction
        scales[index] = keep_scale * scales[index] + (1 - keep_scale) * deviation
    return means.view(bank.means.shape).float(), scales.view(bank.scales.shape).float()


@pytest.mark.parametrize(
    "keep, keep_scale, of_step", [(0.999, 0.0, None), (0.5, 0.3, None), (0.0, 1.0, None), (0.9, 0.0, 0.25)]
)
def test_the_step_is_eq_9(keep, keep_scale, of_step):
    bank, batch = make_bank(momentum_mean=keep, momentum_scale=keep_scale), Batch(12, seed=9)
    batch.correct[batch.assignment == 1] = False  # components without features keep their state
    momentum = keep if of_step is None else of_step
    means, scales = expected_step(bank, batch.stored(samples=4), momentum, keep_scale)
    batch.record(bank)
    bank.update(momentum_mean=of_step)
    torch.testing.assert_close(bank.means, means, rtol=0, atol=1e-6)
    torch.testing.assert_close(bank.scales, scales, rtol=0, atol=1e-6)
    assert bank.fitted.flatten().tolist() == [len(own) > 0 for own in batch.stored(samples=4)]
    assert bank.momentum_mean == keep


@pytest.mark.parametrize("floor", [0.04, 1e-6])
def test_scales_never_fall_below_the_floor(floor):
    bank, least = make_bank(variance_floor=floor, momentum_scale=0.5), floor**0.5
    batch = Batch(40, seed=11)
    batch.features[:] = batch.features[:1].clone()
    for _ in range(30):
        batch.record(bank)
        bank.update()
        assert bank.scales.min() >= least * (1 - 1e-6)
    torch.testing.assert_close(bank.scales, torch.full_like(bank.scales, least), rtol=1e-3, atol=1e-7)
    assert bank.eval().log_prob(batch.features).isfinite().all()


@pytest.mark.parametrize(
    "classes, expected",
    [
        (None, [0, 2]),
        ([3, 0], [0, 3]),
        (torch.tensor([False, True, True, False]), [1, 2]),
        ([], []),
    ],
)
def test_update_moves_exactly_the_chosen_classes(classes, expected):
    bank = make_bank()
    Batch(60, seed=12).record(bank)
    bank.update()
    means, scales = bank.means.clone(), bank.scales.clone()
    batch = Batch(60, seed=13)
    batch.labels[(batch.labels == 1) | (batch.labels == 3)] = 255
    batch.record(bank)
    # A class whose pixels are all wrong has been seen as well.
    batch.correct[batch.labels == 2] = False
    bank.memory.total.mul_(0.5)  # so that a class without newcomers would move too
    bank.update(classes)
    unmoved = [index for index in range(CLASSES) if index not in expected]
    torch.testing.assert_close(bank.means[unmoved], F.normalize(means[unmoved], dim=-1), rtol=0, atol=1e-6)
    assert torch.equal(bank.scales[unmoved], scales[unmoved])
    assert all((bank.scales[index] != scales[index]).any() for index in expected)
    assert not bank.seen.any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory_size": 0}, "MODEL.GMM.MEMORY_SIZE"),
        ({"samples_per_update": 0}, r"samples_per_update: expected a number in \[1"),
        ({"samples_per_update": 9}, "MODEL.GMM.SAMPLES_PER_UPDATE"),
        ({"momentum_mean": 1.5}, r"momentum_mean: expected a number in \[0, 1\], found 1.5"),
        ({"variance_floor": 9e-7}, r"MODEL\.GMM\.VARIANCE_FLOOR\): expected a number in \[1e-06"),
        ({"reduction": "mean"}, r"MODEL\.GMM\.REDUCTION.*'mean'"),
        ({"memory_dtype": torch.int64}, r"dtype of the memory: .*found torch.int64"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_bank(**options)


def test_wrong_shapes_are_named():
    bank, batch = make_bank(), Batch(10, seed=19)
    with pytest.raises(ValueError, match=rf"features: expected shape \(N, {DIM}\)"):
        bank.record(batch.features[:, :-1], batch.labels, batch.assignment, batch.correct)
    for name in ("labels", "assignment", "correct"):
        arguments = {"labels": batch.labels, "assignment": batch.assignment, "correct": batch.correct}
        arguments[name] = arguments[name][:-1]
        with pytest.raises(ValueError, match=rf"{name}: expected shape \(10,\), found \(9,\)"):
            bank.record(batch.features, **arguments)
