"""Densities against the released GMMSeg code's numbers and against torch.distributions in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, UnfittedMixtureError, class_log_density, component_log_prob

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gmmseg_density.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_is_the_reference_density(dtype):
    x, means, scales = (golden(f"base_{name}").to(dtype) for name in ("x", "means", "std"))
    out = component_log_prob(x, means, scales)
    assert out.shape == (512, 19, 5) and out.dtype == dtype
    tolerance = dict(rtol=1e-10, atol=1e-9) if dtype == torch.float64 else dict(rtol=0, atol=2e-4)
    suffix = "f64" if dtype == torch.float64 else "f32"
    torch.testing.assert_close(out.flatten(1), golden(f"base_logprob_{suffix}"), **tolerance)
    torch.testing.assert_close(class_log_density(out), golden(f"base_max_{suffix}"), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_keeps_its_digits_far_away_at_the_floor(dtype):
    x, means, scales = (golden(name).to(dtype) for name in ("hard_x", "base_means", "hard_std"))
    out = component_log_prob(x, means, scales)
    if dtype == torch.float64:
        torch.testing.assert_close(out.flatten(1), golden("hard_logprob_f64"), rtol=1e-10, atol=1e-9)
    else:
        torch.testing.assert_close(out.flatten(1), golden("hard_logprob_f32"), rtol=1e-6, atol=2e-4)


def test_logits_and_gradient_are_those_of_the_reference():
    x = golden("base_x").requires_grad_()
    density = class_log_density(component_log_prob(x, golden("base_means"), golden("base_std")))
    logits = F.layer_norm(density, (19,), golden("ln_weight"), golden("ln_bias"))
    torch.testing.assert_close(logits.detach(), golden("base_ln_f32"), rtol=0, atol=1e-4)
    (golden("base_grad_W") * logits).sum().backward()
    torch.testing.assert_close(x.grad, golden("base_grad_x"), rtol=1e-4, atol=1e-5)


def test_chunks_do_not_change_the_result():
    x, means, scales = golden("base_x"), golden("base_means"), golden("base_std")
    whole = component_log_prob(x, means, scales)
    torch.testing.assert_close(component_log_prob(x, means, scales, chunk_size=100), whole, rtol=0, atol=1e-5)
    with_gradient = component_log_prob(x.clone().requires_grad_(), means, scales, chunk_size=100)
    assert with_gradient.requires_grad
    torch.testing.assert_close(with_gradient.detach(), whole, rtol=0, atol=1e-5)


def test_autocast_does_not_lower_the_precision():
    x, means, scales = golden("base_x"), golden("base_means"), golden("base_std")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = component_log_prob(x, means, scales)
        half = component_log_prob(x.bfloat16(), means, scales)
    assert out.dtype == half.dtype == torch.float32
    torch.testing.assert_close(out.flatten(1), golden("base_logprob_f32"), rtol=0, atol=2e-4)


def test_known_values_at_64_dimensions():
    # reference-facts C1.4: x = mean at scale 1 and 0.1; orthogonal and antipodal unit vectors at scale 0.1.
    mean = torch.zeros(1, 1, 64)
    mean[..., 0] = 1
    x = torch.zeros(3, 64)
    x[0, 0], x[1, 1], x[2, 0] = 1, 1, -1
    at_one = component_log_prob(x[:1], mean, torch.ones_like(mean))
    at_floor = component_log_prob(x, mean, torch.full_like(mean, 0.1))
    assert at_one.item() == pytest.approx(-58.8121, abs=1e-3)
    assert at_floor.flatten().tolist() == pytest.approx([88.5534, -11.4466, -111.4466], abs=1e-3)


def test_logsumexp_is_the_uniform_mixture():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    means = torch.randn(3, 4, 8, generator=generator, dtype=torch.float64)
    scales = torch.rand(3, 4, 8, generator=generator, dtype=torch.float64) + 0.5
    ours = class_log_density(component_log_prob(x, means, scales), "logsumexp")
    for index in range(3):
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(4, dtype=torch.float64)),
            torch.distributions.Independent(torch.distributions.Normal(means[index], scales[index]), 1),
        )
        torch.testing.assert_close(ours[:, index], mixture.log_prob(x), rtol=1e-10, atol=1e-9)


def test_gradients_reach_the_features_only():
    means = torch.randn(2, 3, 4, requires_grad=True)
    scales = torch.ones(2, 3, 4, requires_grad=True)
    x = torch.randn(5, 4, requires_grad=True)
    component_log_prob(x, means, scales).sum().backward()
    assert x.grad is not None and means.grad is None and scales.grad is None


@pytest.mark.parametrize(
    "x, means, scales, message",
    [
        ((4,), (2, 3, 4), (2, 3, 4), r"\(N, D\)"),
        ((5, 4), (2, 3, 4), (2, 3, 5), r"\(C, M, D\)"),
        ((5, 6), (2, 3, 4), (2, 3, 4), "6 dimensions, means have 4"),
    ],
)
def test_wrong_shapes_are_named(x, means, scales, message):
    with pytest.raises(ValueError, match=message):
        component_log_prob(torch.zeros(x), torch.zeros(means), torch.ones(scales))


def test_unknown_reduction_names_the_key():
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.REDUCTION.*'mean'"):
        class_log_density(torch.zeros(1, 1, 1), "mean")


def test_bank_normalises_means_and_reduces_in_chunks():
    means, scales = golden("fwd_means_raw"), golden("fwd_std")
    queue = torch.zeros(95, 64, 1)
    bank = GaussianMixtureBank.from_reference_state(
        means, scales, queue, torch.zeros(95, dtype=torch.int64), samples_per_update=1
    ).eval()
    x = golden("fwd_feat")
    torch.testing.assert_close(bank.log_prob(x).flatten(1), golden("fwd_logprob"), rtol=0, atol=2e-4)
    torch.testing.assert_close(bank.unit_means, golden("fwd_means_after"), rtol=0, atol=1e-6)
    assert torch.equal(bank.means, means), "densities must not rewrite the means"
    expected = class_log_density(golden("fwd_logprob").view(-1, 19, 5))
    torch.testing.assert_close(bank.class_log_density(x, chunk_size=50), expected, rtol=0, atol=2e-4)


def test_unfitted_bank_refuses_to_score():
    bank = GaussianMixtureBank(3, 2, 4)
    assert not bank.is_fitted
    bank.log_prob(torch.zeros(1, 4))
    bank.eval()
    for call in (bank.log_prob, bank.class_log_density):
        with pytest.raises(UnfittedMixtureError, match="MODEL.WEIGHTS"):
            call(torch.zeros(1, 4))


def test_component_never_fitted_takes_no_part_outside_training():
    bank = GaussianMixtureBank(2, 3, 4)
    bank.fitted[:, :2] = True
    bank.scales[:, :2] = 0.1
    # Both sides multiply in another order: in double precision rounding is far below the tolerance.
    x = F.normalize(torch.randn(20, 4, dtype=torch.float64), dim=1)
    raw = component_log_prob(x, bank.unit_means, bank.scales)
    torch.testing.assert_close(bank.class_log_density(x), raw.amax(-1))
    torch.testing.assert_close(bank.eval().class_log_density(x), raw[..., :2].amax(-1))


def test_class_never_seen_is_neither_predicted_nor_scored():
    bank = GaussianMixtureBank(3, 1, 4)
    bank.fitted[:2] = True
    x = F.normalize(torch.randn(20, 4), dim=1)
    bank.eval()
    density = bank.class_log_density(x)
    raw = class_log_density(component_log_prob(x, bank.unit_means, bank.scales))
    torch.testing.assert_close(density[:, :2], raw[:, :2])
    assert density[:, 2].exp().tolist() == [0] * 20 and density.isfinite().all()
    assert bank.known_classes.tolist() == [True, True, False]
