"""Densities against the released GMMSeg code's numbers and against scipy in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm
from torch.nn import functional as F

from gmm_anomaly.gmm import (
    GaussianMixtureBank,
    UnfittedMixtureError,
    class_log_density,
    component_log_prob,
    density,
)

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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), *(st.integers(1, most) for most in (9, 4, 4, 8)))
def test_densities_are_those_of_float64_normals(seed, pixels, classes, components, dim):
    """Unit vectors, scales down to the floor's 0.1."""
    rng = np.random.default_rng(seed)
    x, means = rng.normal(size=(pixels, dim)), rng.normal(size=(classes, components, dim))
    x, means = (array / np.linalg.norm(array, axis=-1, keepdims=True) for array in (x, means))
    scales = rng.uniform(0.1, 2, size=means.shape)
    mixture = [torch.from_numpy(array) for array in (x, means, scales)]
    expected = norm.logpdf(x[:, None, None], means, scales).sum(-1)
    found = component_log_prob(*mixture)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-10)
    single = component_log_prob(*(part.float() for part in mixture))
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(class_log_density(found), expected.max(-1), rtol=1e-11, atol=1e-10)
    of_mixture = logsumexp(expected, -1, b=1 / components)
    np.testing.assert_allclose(class_log_density(found, "logsumexp"), of_mixture, rtol=1e-11, atol=1e-10)


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


def test_bank_normalises_means_and_reduces_in_chunks():
    means, scales = golden("fwd_means_raw"), golden("fwd_std")
    pointer = torch.zeros(95, dtype=torch.int64)
    bank = GaussianMixtureBank.from_reference_state(
        means, scales, torch.zeros(95, 64, 1), pointer, samples_per_update=1
    ).eval()
    x = golden("fwd_feat")
    torch.testing.assert_close(bank.log_prob(x).flatten(1), golden("fwd_logprob"), rtol=0, atol=2e-4)
    torch.testing.assert_close(bank.unit_means, golden("fwd_means_after"), rtol=0, atol=1e-6)
    assert torch.equal(bank.means, means), "densities must not rewrite the means"
    expected = class_log_density(golden("fwd_logprob").view(-1, 19, 5))
    torch.testing.assert_close(bank.class_log_density(x, chunk_size=50), expected, rtol=0, atol=2e-4)


def test_unfitted_bank_refuses_to_score():
    bank = GaussianMixtureBank(3, 2, 4)
    bank.log_prob(torch.zeros(1, 4))
    bank.eval()
    for call in (bank.log_prob, bank.class_log_density, lambda x: bank.sample([0], 1)):
        with pytest.raises(UnfittedMixtureError, match="MODEL.WEIGHTS"):
            call(torch.zeros(1, 4))


def test_what_was_never_fitted_takes_no_part_outside_training():
    bank = GaussianMixtureBank(3, 3, 4)
    # The last component of two classes, and the whole last class, were never fitted.
    bank.fitted[:2, :2] = True
    bank.scales[:2, :2] = 0.1
    # Both sides multiply in another order: in double precision rounding is far below the tolerance.
    x = F.normalize(torch.randn(20, 4, dtype=torch.float64), dim=1)
    raw = component_log_prob(x, bank.unit_means, bank.scales)
    torch.testing.assert_close(bank.class_log_density(x), raw.amax(-1))
    density = bank.eval().class_log_density(x)
    torch.testing.assert_close(density[:, :2], raw[:, :2, :2].amax(-1))
    assert density[:, 2].exp().tolist() == [0] * 20 and density.isfinite().all()
    assert bank.known_classes.tolist() == [True, True, False]


INTERPRETED = """
import torch
from torch.nn import functional as F
from gmm_anomaly.gmm import GaussianMixtureBank, density

for reduction in ("max", "logsumexp"):
    # Sizes that fill no block; a component and a class that were never fitted; a pixel that is not finite.
    bank = GaussianMixtureBank(num_classes=35, num_components=3, dim=20, reduction=reduction).eval()
    bank.fitted.fill_(True)
    bank.scales.uniform_(0.1, 0.15)
    bank.fitted[3, 1] = bank.fitted[5] = False
    x = F.normalize(torch.randn(200, 20), dim=1)
    x[7, 2] = torch.nan
    constant = bank.table().constant.masked_fill(~bank.fitted.flatten(), -torch.inf)
    found = density.fused_class_log_density_of(x, constant, bank.table(), reduction)
    assert density._fuses and found[7, :3].isnan().all()
    found = found.masked_fill(~bank.known_classes, density.EXCLUDED)
    exact = bank.class_log_density(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=1e-4, equal_nan=True)
"""


def test_the_kernel_computes_what_the_formula_does():
    """By Triton's interpreter, which must be asked for before Triton is imported."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_densities_are_computed_where_the_kernel_cannot_be(monkeypatch, caplog):
    bank = GaussianMixtureBank(num_classes=3, num_components=2, dim=4)
    x = torch.nn.functional.normalize(torch.randn(5, 4), dim=1)
    monkeypatch.setattr(density, "_fuses", True)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "gmm_anomaly.gmm.fused_density", raising=False)
    for _ in range(2):
        found = density.fused_class_log_density_of(x, bank.table().constant, bank.table(), "max")
        assert torch.equal(found, component_log_prob(x, bank.unit_means, bank.scales).amax(-1))
    assert caplog.text.count("in several kernels") == 1 and "triton" in caplog.text


def test_the_table_is_kept_until_the_mixtures_change(tmp_path):
    bank = GaussianMixtureBank(num_classes=3, num_components=2, dim=4)
    x = torch.nn.functional.normalize(torch.randn(5, 4), dim=1)

    def fresh() -> torch.Tensor:
        return component_log_prob(x, bank.unit_means, bank.scales)

    assert torch.equal(bank.log_prob(x), fresh()) and bank.table() is bank.table()
    stored = {name: value.clone() for name, value in bank.state_dict().items()}
    for change in (
        lambda: bank.means.copy_(torch.randn(3, 2, 4)),
        lambda: bank.scales.mul_(2),
        lambda: bank.load_state_dict(stored),
        lambda: bank.double().float(),
    ):
        table = bank.table()
        change()
        assert bank.table() is not table and torch.equal(bank.log_prob(x), fresh())
    for change in (lambda: bank.fitted[1].fill_(True), lambda: bank.load_state_dict(stored)):
        change()
        assert bank.fitted_components == bank.fitted.tolist()
    # A table that an inference made serves a training, and mixtures made under inference mode work as well.
    bank.scales.mul_(2)
    with torch.inference_mode():
        bank.log_prob(x)
        other = GaussianMixtureBank(num_classes=3, num_components=2, dim=4)
        assert torch.equal(other.log_prob(x), component_log_prob(x, other.unit_means, other.scales))
        other.scales.mul_(2)
        assert torch.equal(other.log_prob(x), component_log_prob(x, other.unit_means, other.scales))
    leaf = x.clone().requires_grad_()
    bank.log_prob(leaf).sum().backward()
    assert leaf.grad.isfinite().all()
