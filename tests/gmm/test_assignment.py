"""Sinkhorn assignment against the released GMMSeg code's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gmm_anomaly.gmm import sinkhorn_assign, sinkhorn_assign_all

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gmmseg_sinkhorn.npz")
NAMES = [str(name) for name in GOLDEN["names"]]
ALL_TIES = ("n1", "n12_all_equal", "n6_zeros_nan")


def is_tie(name: str) -> bool:
    return name in ALL_TIES


@pytest.mark.parametrize("name", NAMES)
def test_assignment_is_the_reference_assignment(name):
    assignment, plan = sinkhorn_assign(torch.from_numpy(GOLDEN[f"{name}__init"]))
    expected = torch.from_numpy(GOLDEN[f"{name}__idx"])
    soft = torch.from_numpy(GOLDEN[f"{name}__soft"])
    assert assignment.dtype == torch.int64 and plan.shape == soft.shape
    torch.testing.assert_close(plan, soft, rtol=0, atol=2e-5, equal_nan=True)
    if is_tie(name):
        assert torch.equal(assignment, torch.zeros_like(expected))
        return
    if soft.shape[1] > 1:
        top = soft.topk(2, dim=1).values
        clear = top[:, 0] - top[:, 1] > 1e-4
    else:
        clear = torch.ones(len(soft), dtype=torch.bool)
    assert clear.float().mean() > 0.99
    assert torch.equal(assignment[clear], expected[clear])


def test_hand_worked_example():
    # reference-facts C1.3: greedy would give component 0 to every pixel.
    assignment, plan = sinkhorn_assign(torch.tensor([[1, 0.9], [0.8, 0.2], [0.7, 0.1], [0.6, 0.55]]))
    assert assignment.tolist() == [1, 0, 0, 1]
    assert plan[0].tolist() == pytest.approx([0.2188, 0.7812], abs=1e-4)


def test_all_classes_at_once_equal_one_class_at_a_time():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 6, (900,), generator=generator)
    labels[labels == 4] = 255
    labels[:1] = 4
    log_prob = torch.randn(900, 5, generator=generator) * 40
    log_prob[labels == 2] = 0.0
    assignment, plan = sinkhorn_assign_all(log_prob, labels, num_classes=7)
    for index in range(7):
        own = labels == index
        if not own.any():
            continue
        block = log_prob[own]
        expected, expected_plan = sinkhorn_assign(block / block.abs().max())
        torch.testing.assert_close(plan[own], expected_plan, rtol=0, atol=2e-5, equal_nan=True)
        assert torch.equal(assignment[own], expected)
    assert torch.equal(plan[labels == 255], torch.zeros(int((labels == 255).sum()), 5))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"scores: expected shape \(n, M\)"):
        sinkhorn_assign(torch.zeros(3))
    with pytest.raises(ValueError, match="SINKHORN_EPSILON"):
        sinkhorn_assign(torch.zeros(3, 2), epsilon=0.0)
    with pytest.raises(ValueError, match="SINKHORN_ITERATIONS"):
        sinkhorn_assign_all(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 1, iterations=0)
