"""Health numbers of mixtures against hand-worked numbers and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.health import effective_components, pixel_health, state_numbers


def test_effective_components_are_the_exponential_of_the_entropy():
    weights = torch.tensor([[8.0, 0, 0, 0], [2, 2, 2, 2], [4, 2, 1, 1], [0, 0, 0, 0]])
    # Shares 1/2, 1/4, 1/8, 1/8 have 1.75 bits.
    found = effective_components(weights)
    assert found[:3].tolist() == pytest.approx([1, 4, 2**1.75]) and found[3].isnan()


def test_state_numbers_by_hand():
    bank = GaussianMixtureBank(2, 2, 2, memory_size=4, samples_per_update=4, variance_floor=0.01)
    assert state_numbers(bank)["fitted_classes"] == 0
    features = torch.tensor([[0.6, 0.8], [0.6, -0.8], [1.0, 0.0]])
    zeros = torch.zeros(3, dtype=torch.int64)
    bank.record(features, zeros, torch.tensor([0, 0, 1]), zeros == 0)
    bank.update()
    # Around (1, 0): variances 0.16 and 0.64, and none; 0.01 more each.
    expected = np.sqrt([0.17, 0.65, 0.01, 0.01]).mean()
    assert state_numbers(bank) == {
        "fitted_classes": 1,
        "mean_scale": pytest.approx(expected, rel=1e-6),
        "scales_at_floor": 0.5,
        "memory_fill": 3 / 16,
        "empty_components": 2,
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
