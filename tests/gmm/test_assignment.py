"""Sinkhorn assignment against the released GMMSeg code's numbers, and all classes against one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_anomaly.gmm import sinkhorn_assign, sinkhorn_assign_all

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gmmseg_sinkhorn.npz")
NAMES = [str(name) for name in GOLDEN["names"]]
ALL_TIES = ("n1", "n12_all_equal", "n6_zeros_nan")
SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", NAMES)
def test_assignment_is_the_reference_assignment(name):
    assignment, plan = sinkhorn_assign(torch.from_numpy(GOLDEN[f"{name}__init"]))
    expected = torch.from_numpy(GOLDEN[f"{name}__idx"])
    soft = torch.from_numpy(GOLDEN[f"{name}__soft"])
    assert assignment.dtype == torch.int64 and plan.shape == soft.shape
    torch.testing.assert_close(plan, soft, rtol=0, atol=2e-5, equal_nan=True)
    if name in ALL_TIES:
        assert torch.equal(assignment, torch.zeros_like(expected))
        return
    clear = torch.ones(len(soft), dtype=torch.bool)
    if soft.shape[1] > 1:
        top = soft.topk(2, dim=1).values
        clear = top[:, 0] - top[:, 1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(assignment[clear], expected[clear])


def test_hand_worked_example():
    # reference-facts C1.3: greedy would give component 0 to every pixel.
    assignment, plan = sinkhorn_assign(torch.tensor([[1, 0.9], [0.8, 0.2], [0.7, 0.1], [0.6, 0.55]]))
    assert assignment.tolist() == [1, 0, 0, 1]
    assert plan[0].tolist() == pytest.approx([0.2188, 0.7812], abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.0, 0.1, 300]))
def test_all_classes_at_once_equal_one_class_at_a_time(seed, pixels, components, classes, scale):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(size=(pixels, components)) * scale)
    labels = torch.from_numpy(rng.choice([*range(classes), 255], pixels))
    assignment, plan = sinkhorn_assign_all(scores, labels, classes)
    assert not plan[labels == 255].any() and not assignment[labels == 255].any()
    for index in range(classes):
        own = labels == index
        if own.any():
            alone, expected = sinkhorn_assign(scores[own] / scores[own].abs().max())
            torch.testing.assert_close(plan[own], expected, rtol=1e-9, atol=1e-12, equal_nan=True)
            assert torch.equal(assignment[own], alone)


@pytest.mark.parametrize("epsilon, low, high", [(0.01, 0.0, 1.0), (0.01, -1.0, -0.1), (5e-4, -1.0, 1.0)])
def test_small_temperatures_neither_overflow_nor_vanish(epsilon, low, high):
    """Against the plain formula where it is finite: with a wide exponent."""
    rng = np.random.default_rng(7)
    scores = rng.uniform(low, high, (40, 3)).astype(np.float32)
    scores[:, 2] -= 0.9 * (high - low)  # a component that is the best of no pixel
    plan = np.exp(scores.astype(np.longdouble) / np.float32(epsilon))
    for _ in range(3):
        plan /= plan.sum(0)
        plan /= plan.sum(1, keepdims=True)
    assert np.isfinite(plan).all()
    labels = torch.zeros(40, dtype=torch.int64)
    largest = np.abs(scores).max()
    found, soft = sinkhorn_assign(torch.from_numpy(scores), epsilon=epsilon)
    together = sinkhorn_assign_all(torch.from_numpy(scores), labels, 1, epsilon=epsilon / float(largest))
    np.testing.assert_allclose(soft.numpy(), plan.astype(float), atol=2e-3)
    assert found.tolist() == plan.argmax(1).tolist() == together[0].tolist()
    assert len(set(found.tolist())) == 3


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"scores: expected shape \(n, M\)"):
        sinkhorn_assign(torch.zeros(3))
    with pytest.raises(ValueError, match="SINKHORN_EPSILON"):
        sinkhorn_assign(torch.zeros(3, 2), epsilon=0.0)
    with pytest.raises(ValueError, match="SINKHORN_ITERATIONS"):
        sinkhorn_assign_all(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 1, iterations=0)
