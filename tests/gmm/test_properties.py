"""Properties of mixtures, assignment and memory on generated inputs, against float64 and plain counts."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, class_log_density, component_log_prob
from gmm_anomaly.gmm.assignment import sinkhorn_assign, sinkhorn_assign_all
from gmm_anomaly.gmm.memory import FeatureMemory

# A busy machine is not a fault of the mixtures.
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def mixtures(draw):
    """Unit features (N, D), unit means and scales (C, M, D), scales down to the floor's 0.1."""
    rng = np.random.default_rng(draw(SEEDS))
    pixels, classes, components, dim = (draw(st.integers(1, most)) for most in (9, 4, 4, 8))
    x, means = rng.normal(size=(pixels, dim)), rng.normal(size=(classes, components, dim))
    scales = rng.uniform(0.1, 2, size=means.shape)
    unit = [array / np.linalg.norm(array, axis=-1, keepdims=True) for array in (x, means)]
    return tuple(torch.from_numpy(array) for array in (*unit, scales))


@few
@given(mixtures())
def test_log_prob_is_that_of_float64_normals(mixture):
    x, means, scales = (part.numpy() for part in mixture)
    expected = norm.logpdf(x[:, None, None], means, scales).sum(-1)
    np.testing.assert_allclose(component_log_prob(*mixture), expected, rtol=1e-11, atol=1e-10)
    single = component_log_prob(*(part.float() for part in mixture))
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-3)
    for reduction, plain in (
        ("max", expected.max(-1)),
        ("logsumexp", logsumexp(expected, -1, b=1 / means.shape[1])),
    ):
        found = class_log_density(component_log_prob(*mixture), reduction)
        np.testing.assert_allclose(found, plain, rtol=1e-11, atol=1e-10)


@few
@given(mixtures(), SEEDS)
def test_densities_do_not_know_the_order_of_classes_components_and_pixels(mixture, seed):
    x, means, scales = mixture
    generator = torch.Generator().manual_seed(seed)
    pixels, classes, components = (
        torch.randperm(size, generator=generator) for size in (len(x), *means.shape[:2])
    )
    found = component_log_prob(x[pixels], means[classes][:, components], scales[classes][:, components])
    expected = component_log_prob(x, means, scales)[pixels][:, classes][:, :, components]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@st.composite
def assigned(draw):
    """Log-densities (N, M) in float64 and labels (N,), some of them no class."""
    rng = np.random.default_rng(draw(SEEDS))
    pixels, components, classes = draw(st.integers(1, 30)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    scores = torch.from_numpy(rng.normal(size=(pixels, components)) * draw(st.sampled_from([0.1, 10, 300])))
    labels = torch.from_numpy(rng.choice([*range(classes), 255], pixels))
    return scores, labels, classes


@few
@given(assigned())
def test_plans_of_all_classes_are_those_of_each(case):
    scores, labels, classes = case
    assignment, plan = sinkhorn_assign_all(scores, labels, classes)
    assert not plan[labels == 255].any() and not assignment[labels == 255].any()
    for index in range(classes):
        own = labels == index
        if own.any():
            alone, expected = sinkhorn_assign(scores[own] / scores[own].abs().max())
            torch.testing.assert_close(plan[own], expected, rtol=1e-9, atol=1e-12)
            assert torch.equal(assignment[own], alone)


@few
@given(assigned(), SEEDS)
def test_plans_are_equivariant_to_the_order_of_pixels_and_components(case, seed):
    scores, labels, classes = case
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randperm(len(scores), generator=generator)
    components = torch.randperm(scores.shape[1], generator=generator)
    _, plan = sinkhorn_assign_all(scores, labels, classes)
    _, found = sinkhorn_assign_all(scores[pixels][:, components], labels[pixels], classes)
    torch.testing.assert_close(found, plan[pixels][:, components], rtol=1e-9, atol=1e-12)


@few
@given(SEEDS, st.integers(1, 5), st.integers(1, 8))
def test_marginals_of_the_plan(seed, components, share):
    """Rows sum to one; with many rounds every component gets the same mass (a matrix without zeros)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(components * share, components, generator=generator, dtype=torch.float64) - 1
    _, plan = sinkhorn_assign(scores)
    assert bool((plan >= 0).all())
    torch.testing.assert_close(plan.sum(1), torch.ones(len(plan), dtype=plan.dtype))
    _, balanced = sinkhorn_assign(scores, iterations=300, epsilon=0.5)
    torch.testing.assert_close(balanced.sum(0), torch.full((components,), float(share), dtype=plan.dtype))


@few
@given(SEEDS, st.integers(1, 6), st.lists(st.integers(0, 25), min_size=1, max_size=6), st.data())
def test_memory_counts_what_it_holds_and_never_more_than_its_slots(seed, slots, batches, data):
    rings, dim = 3, 4
    samples = data.draw(st.integers(1, slots))
    rng = np.random.default_rng(seed)
    memory = FeatureMemory(rings, slots, dim)
    held: list[list[np.ndarray]] = [[] for _ in range(rings)]
    for size in batches:
        features = rng.normal(size=(size, dim)).astype(np.float32)
        component = rng.integers(-1, rings + 1, size)
        memory.add_batch(torch.from_numpy(features), torch.from_numpy(component), samples)
        for index in range(rings):
            own = features[component == index]
            if len(own) > samples:
                own = own[torch.linspace(0, len(own) - 1, samples).long().numpy()]
            held[index] = (held[index] + list(own))[-slots:]
        assert memory.count.tolist() == [len(ring) for ring in held]
        assert int(memory.count.max()) <= slots
    for index, ring in enumerate(held):
        stored = np.array(ring, np.float64).reshape(-1, dim)
        np.testing.assert_allclose(memory.total[index], stored.sum(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(memory.total_square[index], (stored**2).sum(0), rtol=0, atol=1e-12)


def trained_bank(seed: int, save_memory: bool, steps: int = 3) -> GaussianMixtureBank:
    torch.manual_seed(seed)
    bank = GaussianMixtureBank(3, 2, 5, 6, samples_per_update=4, momentum_mean=0.5, save_memory=save_memory)
    advance(bank, seed, steps)
    return bank


def advance(bank: GaussianMixtureBank, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    for _ in range(steps):
        features = F.normalize(torch.randn(20, 5, generator=generator), dim=1)
        labels = torch.randint(0, 4, (20,), generator=generator)
        assignment = torch.randint(0, 2, (20,), generator=generator)
        bank.record(features, labels, assignment, torch.ones(20, dtype=torch.bool))
        bank.commit()
        bank.update()


@few
@given(SEEDS, st.booleans())
def test_state_of_a_bank_goes_through_a_file(seed, save_memory):
    bank = trained_bank(seed, save_memory)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = GaussianMixtureBank(3, 2, 5, 6, samples_per_update=4, momentum_mean=0.5, save_memory=save_memory)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(7, 5)
    assert torch.equal(other.eval().class_log_density(x), bank.eval().class_log_density(x))
    for name, expected in bank.state_dict().items():
        assert torch.equal(other.state_dict()[name], expected), name
    if save_memory:
        # With its ring, the bank goes on as the one that was never stored.
        for one in (bank, other):
            advance(one.train(), seed + 1, 2)
        assert torch.equal(other.means, bank.means) and torch.equal(other.scales, bank.scales)


@few
@given(SEEDS, st.permutations(range(3)))
def test_em_is_equivariant_to_renaming_classes(seed, names):
    order = torch.tensor(names)
    torch.manual_seed(0)
    one = GaussianMixtureBank(3, 2, 5, 6, samples_per_update=4, momentum_mean=0.5)
    other = GaussianMixtureBank(3, 2, 5, 6, samples_per_update=4, momentum_mean=0.5)
    other.means[order] = one.means
    generator = torch.Generator().manual_seed(seed % 2**31)
    features = F.normalize(torch.randn(30, 5, generator=generator), dim=1)
    labels = torch.randint(0, 3, (30,), generator=generator)
    assignment = torch.randint(0, 2, (30,), generator=generator)
    for bank, own in ((one, labels), (other, order[labels])):
        bank.record(features, own, assignment, torch.ones(30, dtype=torch.bool))
        bank.commit()
        bank.update()
    assert torch.equal(other.means[order], one.means) and torch.equal(other.scales[order], one.scales)
    assert pytest.approx(0.01**0.5, abs=1e-6) == min(0.01**0.5, float(one.scales.min()))
