"""Health numbers, empty components, floors and far-away densities against hand-worked numbers and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, component_log_prob
from gmm_anomaly.gmm.empty_components import reseed_empty
from gmm_anomaly.gmm.health import effective_components, pixel_health, principal_plane, state_numbers


def unit(count: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def recorded(bank: GaussianMixtureBank, features: torch.Tensor, label: int, component: int) -> None:
    whole = torch.ones(len(features), dtype=torch.int64)
    bank.record(features, whole * label, whole * component, whole.bool())


def test_effective_components_are_the_exponential_of_the_entropy():
    weights = torch.tensor([[8.0, 0, 0, 0], [2, 2, 2, 2], [4, 2, 1, 1], [0, 0, 0, 0]])
    # Shares 1/2, 1/4, 1/8, 1/8 have 1.75 bits.
    found = effective_components(weights)
    assert found[:3].tolist() == pytest.approx([1, 4, 2**1.75]) and found[3].isnan()


def test_state_numbers_by_hand():
    bank = GaussianMixtureBank(2, 2, 2, memory_size=4, samples_per_update=4, variance_floor=0.01)
    assert state_numbers(bank)["fitted_classes"] == 0
    recorded(bank, torch.tensor([[0.6, 0.8], [0.6, -0.8]]), 0, 0)
    recorded(bank, torch.tensor([[1.0, 0.0]]), 0, 1)
    bank.update()
    # Around (1, 0): variances 0.16 and 0.64, and none; 0.01 more each.
    expected = np.sqrt([0.17, 0.65, 0.01, 0.01]).mean()
    assert state_numbers(bank) == {
        "fitted_classes": 1,
        "mean_scale": pytest.approx(expected, rel=1e-6),
        "scales_at_floor": 0.5,
        "memory_fill": 3 / 16,
        "empty_components": 2,
        "reseeded_components": 0,
    }


def bank_of_two() -> GaussianMixtureBank:
    """Class 0 with components at (1, 0) and (0, 1), class 1 with one at (-1, 0), class 2 with none."""
    bank = GaussianMixtureBank(3, 2, 2)
    bank.means.copy_(torch.tensor([[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]], [[0, 1], [0, 1]]]))
    bank.scales.fill_(0.5)
    bank.fitted.copy_(torch.tensor([[True, True], [True, False], [False, False]]))
    return bank


def test_pixel_health_by_hand():
    bank = bank_of_two()
    middle = [0.5**0.5, 0.5**0.5]
    features = torch.tensor([[1.0, 0], middle, [-1, 0], [0, 1], [1, 0]])
    labels = torch.tensor([0, 0, 1, 2, 255])
    found = pixel_health(bank, features, labels, chunk_size=2)
    assert found.pixels.tolist() == [2, 1, 0]

    # Squared distance 2 between the components: log-odds 2 / (2 * 0.25) = 4 at the first pixel, 0 between.
    near = 1 / (1 + math.exp(-4))
    entropy = -near * math.log(near) - (1 - near) * math.log(1 - near)
    share = (near + 0.5) / 2
    effective = math.exp(-share * math.log(share) - (1 - share) * math.log(1 - share))
    assert found.effective_components[:2].tolist() == pytest.approx([effective, 1.0], abs=1e-6)
    assert found.effective_components[2].isnan()
    # The component of class 1 that was never fitted takes no part: its pixel has no entropy.
    assert found.assignment_entropy == pytest.approx((entropy + math.log(2)) / 3 / math.log(2), abs=1e-6)

    peak = -math.log(2 * math.pi * 0.25)
    distance = 2 - 2 * middle[0]
    first = peak + math.log(0.5 * (1 + math.exp(-4)))
    second = peak - distance / 0.5
    third = peak + math.log(0.5)
    assert found.log_likelihood == pytest.approx((first + second + third) / 3, abs=1e-5)


def test_pixel_health_without_pixels_is_not_a_number():
    found = pixel_health(bank_of_two(), torch.zeros(2, 2), torch.tensor([2, 255]))
    assert math.isnan(found.assignment_entropy) and math.isnan(found.log_likelihood)
    assert found.effective_components.isnan().all()
    with pytest.raises(ValueError, match=r"labels: expected shape \(2,\), found \(3,\)"):
        pixel_health(bank_of_two(), torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64))


def test_plane_is_numpys_pca():
    features = unit(200, 6, seed=1) * torch.tensor([3.0, 1, 2, 0.5, 0.1, 0.1])
    plane = principal_plane(features)
    values = features.double().numpy()
    centred = values - values.mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    assert plane.explained == pytest.approx(singular[:2] ** 2 / (singular**2).sum(), rel=1e-9)
    expected = centred @ rows[:2].T
    found = plane.points(features).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    for axis in plane.axes:
        assert axis[axis.abs().argmax()] > 0
    scales = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
    axes = plane.axes.numpy()
    for covariance, scale in zip(plane.covariances(scales).numpy(), scales.double().numpy(), strict=True):
        np.testing.assert_allclose(covariance, axes @ np.diag(scale**2) @ axes.T, atol=1e-12)
    with pytest.raises(ValueError, match="D >= 2"):
        principal_plane(torch.zeros(3, 1))


def test_reseeding_by_hand():
    # Class 0: component 1 is the most spread one, along its second dimension; 0 and 3 are empty; 2 has no
    # spread. Class 1: all empty. Class 2: one component for three empty ones.
    count = torch.tensor([[0, 5, 5, 0], [0, 0, 0, 0], [0, 7, 0, 0]])
    means = unit(12, 3, seed=3).view(3, 4, 3)
    means[0, 1], means[2, 1] = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
    variance = torch.zeros(3, 4, 3)
    variance[0, 1] = torch.tensor([0.01, 0.25, 0.04])
    variance[2, 1] = torch.tensor([0.09, 0, 0])
    scales = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(4)) + 0.1
    found = reseed_empty(means, scales, variance, count)
    assert found.which.tolist() == [[True, False, False, False], [False] * 4, [True, False, True, True]]
    root = 1.25**0.5
    expected = means.clone()
    expected[0, 0] = torch.tensor([1 / root, 0.5 / root, 0])
    for component, step in ((0, 0.3), (2, -0.3), (3, 0.6)):
        expected[2, component] = F.normalize(torch.tensor([step, 0.0, 1.0]), dim=0)
    torch.testing.assert_close(found.means, expected)
    for classed, component, donor in ((0, 0, 1), (2, 0, 1), (2, 2, 1), (2, 3, 1)):
        assert torch.equal(found.scales[classed, component], scales[classed, donor])
    assert torch.equal(found.scales[1], scales[1]) and torch.equal(found.scales[:, 1], scales[:, 1])


@pytest.mark.parametrize("rule, fitted, reseeded", [("keep", [True, False], 0), ("reseed", [True, True], 1)])
def test_empty_component_is_kept_or_reseeded(rule, fitted, reseeded):
    bank = GaussianMixtureBank(2, 2, 4, memory_size=50, samples_per_update=20, empty_components=rule)
    first = bank.means.clone()
    recorded(bank, unit(20, 4, seed=5), 0, 0)
    bank.update()
    assert bank.fitted[0].tolist() == fitted and int(bank.reseeded) == reseeded
    assert torch.allclose(bank.means[0, 1], first[0, 1]) == (rule == "keep")
    # A class without any feature stays as it is under either rule.
    torch.testing.assert_close(bank.means[1], first[1])
    assert float(bank.means[0, 1].norm()) == pytest.approx(1.0, abs=1e-6)
    assert state_numbers(bank)["reseeded_components"] == reseeded
    # Once pixels have come to it, it is a component like any other.
    recorded(bank, unit(20, 4, seed=6), 0, 1)
    bank.update()
    assert int(bank.reseeded) == reseeded and bank.memory.count.tolist() == [20, 20, 0, 0]
    assert "reseeded" not in bank.state_dict(), "a checkpoint without it must still load"


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.EMPTY_COMPONENTS.*keep, reseed, found 'drop'"):
        GaussianMixtureBank(2, 2, 4, empty_components="drop")


@pytest.mark.parametrize("momentum_scale", [0.0, 0.9])
@pytest.mark.parametrize("floor", [1e-2, 1e-4, 0.0])
def test_scales_never_fall_below_the_floor(floor, momentum_scale):
    bank = GaussianMixtureBank(
        1, 2, 8, memory_size=20, samples_per_update=10, variance_floor=floor, momentum_scale=momentum_scale
    )
    same = unit(1, 8, seed=7).expand(10, 8)
    for _ in range(400 if momentum_scale else 3):
        recorded(bank, same, 0, 0)
        recorded(bank, unit(10, 8, seed=8) * 1e-3 + same, 0, 1)
        bank.update()
    assert bool((bank.scales >= torch.tensor(max(floor**0.5, 1e-6))).all())
    assert float(bank.scales[0, 0].max()) == pytest.approx(max(floor**0.5, 1e-6), rel=1e-4)
    assert bank.eval().log_prob(same).isfinite().all()


@pytest.mark.parametrize("distance", [1.0, 1e2, 1e4])
def test_density_stays_finite_far_away_at_the_floor(distance):
    means, scales = unit(10, 64, seed=9).view(5, 2, 64), torch.full((5, 2, 64), 0.1)
    x = distance * unit(20, 64, seed=10)
    found = component_log_prob(x, means, scales)
    exact = component_log_prob(x.double(), means.double(), scales.double())
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)
    bank = GaussianMixtureBank(5, 2, 64, reduction="logsumexp")
    bank.means.copy_(means)
    bank.scales.copy_(scales)
    bank.fitted.fill_(True)
    assert bank.eval().class_log_density(x).isfinite().all()


def test_state_with_useless_scales_is_refused():
    state = GaussianMixtureBank(2, 1, 3).state_dict()
    for name, value in (("scales", 0.0), ("scales", math.nan), ("means", math.inf)):
        broken = {key: tensor.clone() for key, tensor in state.items()}
        broken[name].view(-1)[2] = value
        with pytest.raises(ValueError, match="not finite, or standard deviations"):
            GaussianMixtureBank(2, 1, 3).load_state_dict(broken)


def test_discarded_batches_leave_nothing_behind():
    bank = GaussianMixtureBank(1, 1, 4, memory_size=10, samples_per_update=5)
    recorded(bank, unit(5, 4, seed=11), 0, 0)
    bank.discard_recorded()
    bank.update()
    assert not bank.is_fitted and int(bank.memory.count) == 0 and not bool(bank.seen.any())
