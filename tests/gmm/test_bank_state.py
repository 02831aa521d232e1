"""The bank's checkpoints, the reference's state, samples, and recovery of a mixture."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, sinkhorn_assign_all

CLASSES, COMPONENTS, DIM = 4, 2, 6


def make_bank(seed: int = 0, **options: Any) -> GaussianMixtureBank:
    torch.manual_seed(seed)
    options = {"memory_size": 8, "samples_per_update": 4, **options}
    return GaussianMixtureBank(CLASSES, COMPONENTS, DIM, **options)


def batch(size: int, seed: int, correct: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``record`` takes: random pixels of all classes, the given part of them predicted correctly."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
    assignment = torch.randint(0, COMPONENTS, (size,), generator=generator)
    return features, torch.arange(size) % CLASSES, assignment, torch.rand(size, generator=generator) < correct


def through_a_file(bank: GaussianMixtureBank) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("options", [{}, {"warm_start_features": 30, "memory_dtype": torch.float16}])
def test_with_its_memory_a_resumed_bank_continues_bit_for_bit(options):
    straight, first = (make_bank(save_memory=True, fill_slots=5, **options) for _ in range(2))
    for seed in range(12):
        for bank in (straight, first):
            bank.record(*batch(24, seed, correct=0.7))
            bank.commit()
            if seed % 3 == 0:
                bank.update()
        if seed in (1, 7):
            state = through_a_file(first)
            first = make_bank(seed=99, save_memory=True, fill_slots=5, **options)
            first.record(*batch(24, 99))
            first.load_state_dict(state)
    slots = straight.memory.slots
    for name, expected in straight.named_buffers():
        found = first.get_buffer(name)
        if name == "memory.ring":
            # The last slot takes what must not be stored, and unused slots hold nothing.
            expected, found = expected[:, :slots], found[:, :slots]
        elif name.startswith("memory.lost_"):
            assert not (first.memory.lost_count.any() or straight.memory.lost_count.any())
            continue
        assert torch.equal(expected, found), name


def test_without_its_memory_a_resumed_bank_goes_on_in_expectation():
    # Features from the same source: the average that leaves stands for those that would have left.
    source = F.normalize(
        torch.randn(CLASSES * COMPONENTS, DIM, generator=torch.Generator().manual_seed(3)), dim=1
    )

    def step(each: GaussianMixtureBank, seed: int) -> None:
        index = torch.arange(CLASSES * COMPONENTS).repeat(3)
        noise = torch.randn(len(index), DIM, generator=torch.Generator().manual_seed(seed))
        features = F.normalize(source[index] + 0.05 * noise, dim=1)
        each.record(features, index // COMPONENTS, index % COMPONENTS, index >= 0)
        each.update()

    straight, resumed = (make_bank(seed, memory_size=60, momentum_mean=0.9) for seed in (0, 99))
    for seed in range(30):
        step(straight, seed)
    assert "memory.ring" not in straight.state_dict()
    resumed.load_state_dict(through_a_file(straight))
    assert torch.equal(resumed.memory.total, straight.memory.total)
    for seed in range(30, 60):
        for each in (straight, resumed):
            step(each, seed)
        torch.testing.assert_close(resumed.means, straight.means, rtol=0, atol=0.01)
        torch.testing.assert_close(resumed.scales, straight.scales, rtol=0, atol=0.01)
    torch.testing.assert_close(resumed.memory.total, straight.memory.total, rtol=0, atol=1e-9)
    torch.testing.assert_close(resumed.memory.total_square, straight.memory.total_square, rtol=0, atol=1e-9)


def test_state_with_useless_scales_is_refused():
    state = make_bank().state_dict()
    for name, value in (("scales", 0.0), ("scales", math.nan), ("means", math.inf)):
        broken = {key: tensor.clone() for key, tensor in state.items()}
        broken[name].view(-1)[2] = value
        with pytest.raises(ValueError, match="not finite, or standard deviations"):
            make_bank().load_state_dict(broken)


def reference_state(**changes: Tensor) -> dict[str, Tensor]:
    golden = np.load(Path(__file__).parents[1] / "data" / "gmmseg_step.npz")
    names = ("means", "diagonal", "queue", "queue_ptr")
    return {name: torch.from_numpy(golden[f"A__init_{name}"]) for name in names} | changes


def test_a_reference_state_has_the_statistics_of_its_queue():
    state = reference_state()
    bank = GaussianMixtureBank.from_reference_state(**state, samples_per_update=2)
    queue = state["queue"].double()
    assert bank.is_fitted and bank.memory.count.tolist() == [queue.shape[2]] * queue.shape[0]
    torch.testing.assert_close(bank.memory.total, queue.sum(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.memory.total_square, queue.square().sum(2), rtol=0, atol=1e-12)
    assert torch.equal(bank.means, state["means"]) and torch.equal(bank.scales, state["diagonal"])
    assert torch.equal(bank.memory.pointer, state["queue_ptr"].long())


@pytest.mark.parametrize(
    "name, replace, message",
    [
        ("diagonal", lambda t: t[..., 1:], "diagonal: expected shape"),
        ("queue", lambda t: t.transpose(1, 2), "queue: expected shape"),
        ("queue", lambda t: t[..., :-1], "memory_size: the queue has .* slots, found"),
        ("queue_ptr", lambda t: t[:-1], "queue_ptr: expected shape"),
    ],
)
def test_a_reference_state_that_does_not_fit_is_refused(name, replace, message):
    state = reference_state()
    slots = state["queue"].shape[2]
    with pytest.raises(ValueError, match=message):
        GaussianMixtureBank.from_reference_state(
            **state | {name: replace(state[name])}, samples_per_update=2, memory_size=slots
        )


@pytest.mark.parametrize("noise_scale", [1.0, 0.5, 0.0])
def test_samples_have_the_moments_of_the_mixture(noise_scale):
    bank = make_bank()
    generator = torch.Generator().manual_seed(0)
    bank.means.copy_(torch.randn(bank.means.shape, generator=generator) * 3)
    bank.scales.copy_(torch.rand(bank.scales.shape, generator=generator) * 0.4 + 0.1)
    bank.fitted.fill_(True)
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    number = 100_000
    first, drawn = bank.sample([0, 1], number, noise_scale=noise_scale, generator=generator)
    assert all(torch.equal(buffer, before[name]) for name, buffer in bank.named_buffers())
    assert not torch.equal(first, drawn) and drawn.dtype == torch.float32
    drawn = drawn.double().numpy()

    rng = np.random.default_rng(0)
    means = bank.means[1].double().numpy()
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    component = rng.integers(COMPONENTS, size=number)
    deviation = noise_scale * bank.scales[1].double().numpy()[component]
    expected = means[component] + deviation * rng.standard_normal((number, DIM))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # Values lie in [-1, 1]: five standard errors of the difference of two such averages.
    tolerance = 5 * (2 / number) ** 0.5
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(drawn.mean(0), expected.mean(0), rtol=0, atol=tolerance)
    second = drawn.T @ drawn / number
    np.testing.assert_allclose(second, expected.T @ expected / number, rtol=0, atol=tolerance)
    np.testing.assert_allclose((drawn**4).mean(0), (expected**4).mean(0), rtol=0, atol=tolerance)


def test_em_from_a_warm_start_recovers_a_known_mixture():
    classes, components, dim, spread = 3, 3, 16, 0.06
    generator = torch.Generator().manual_seed(0)
    truth = F.normalize(torch.randn(classes, components, dim, generator=generator), dim=-1)
    bank = GaussianMixtureBank(
        classes, components, dim, memory_size=400, momentum_mean=0.5, warm_start_features=150, fill_slots=50
    )

    def draw(number: int) -> tuple[Tensor, Tensor, Tensor]:
        labels = torch.randint(classes, (number,), generator=generator)
        source = torch.randint(components, (number,), generator=generator)
        noise = spread * torch.randn(number, dim, generator=generator)
        return F.normalize(truth[labels, source] + noise, dim=1), labels, source

    for _ in range(40):
        features, labels, _ = draw(200)
        log_prob = bank.log_prob(features)
        assignment, _ = sinkhorn_assign_all(log_prob[torch.arange(200), labels], labels, classes)
        bank.record(features, labels, assignment, bank.class_log_density(features).argmax(1) == labels)
        bank.update()
    features, labels, source = draw(3000)
    for index in range(classes):
        cosine = bank.unit_means[index] @ truth[index].t()
        match = cosine.argmax(dim=1)
        assert match.sort().values.tolist() == [0, 1, 2]
        assert cosine.amax(dim=1).min() > 0.997
        for component, true_component in enumerate(match.tolist()):
            own = features[(labels == index) & (source == true_component)].double()
            direction = F.normalize(own.sum(0), dim=0)
            deviation = ((own - direction).square().mean(0) + bank.variance_floor).sqrt()
            torch.testing.assert_close(bank.scales[index, component].double(), deviation, rtol=0.05, atol=0)
    bank.eval()
    assert (bank.class_log_density(features).argmax(1) == labels).double().mean() > 0.99
