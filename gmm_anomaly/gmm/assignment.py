"""Sinkhorn assignment of a class's pixels to its components, uniform over components (GMMSeg, Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_assign(scores: Tensor, iterations: int = 3, epsilon: float = 0.05) -> tuple[Tensor, Tensor]:
    """Assign the pixels of one class to its components.

    Args:
        scores: (n, M) floating point: the class's own component log-densities, divided by their largest
            magnitude.
        iterations: rounds of component-then-pixel normalisation. Each ends on the pixels, so the balance over
            components is approximate, as in the released code.
        epsilon: temperature.

    Returns:
        assignment: (n,) int64, the arg-max of the plan; ties go to the lowest index.
        plan: (n, M), rows summing to one.

    Raises:
        ValueError: scores that are not two-dimensional, or a non-positive temperature.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores: expected shape (n, M), found {tuple(scores.shape)}")
    _check_options(iterations, epsilon)
    # Only the first round meets numbers of any size: afterwards a component's total is 1 / M or more.
    logits = scores / epsilon
    plan = torch.softmax(logits - logits.logsumexp(dim=0), dim=1)
    for _ in range(iterations - 1):
        plan = plan / plan.sum(dim=0, keepdim=True)
        plan = plan / plan.sum(dim=1, keepdim=True)
    return _first_best(plan), plan


def sinkhorn_assign_all(
    own_log_prob: Tensor, labels: Tensor, num_classes: int, iterations: int = 3, epsilon: float = 0.05
) -> tuple[Tensor, Tensor]:
    """The assignment of :func:`sinkhorn_assign` for every class at once, without a loop over classes.

    Shapes do not depend on the data, so a GPU is never waited for.

    Args:
        own_log_prob: (N, M) log-densities of each pixel under the components of its own class (any finite
            values where the label is no class). Each class is divided by its own largest magnitude here.
        labels: (N,) int64; values outside ``0 .. num_classes - 1`` are left out.
        num_classes: C.
        iterations, epsilon: as in :func:`sinkhorn_assign`.

    Returns:
        assignment: (N,) int64 component per pixel (0 where the label is no class).
        plan: (N, M); zero rows where the label is no class.
    """
    _check_options(iterations, epsilon)
    valid = (labels >= 0) & (labels < num_classes)
    segment = torch.where(valid, labels, num_classes)
    components = own_log_prob.shape[1]
    largest = own_log_prob.new_zeros(num_classes + 1)
    largest.scatter_reduce_(0, segment, own_log_prob.abs().amax(dim=1), "amax")
    logits = own_log_prob / (largest[segment, None] * epsilon)
    totals = logits.new_zeros(num_classes + 1, components)
    peak = torch.full_like(totals, -torch.inf)
    peak.scatter_reduce_(0, segment[:, None].expand(-1, components), logits, "amax")
    shifted = logits - peak.index_select(0, segment)
    # The first round by logarithms, see sinkhorn_assign.
    totals = totals.index_add(0, segment, shifted.exp()).log()
    plan = torch.softmax(shifted - totals.index_select(0, segment), dim=1)
    for _ in range(iterations - 1):
        totals = torch.zeros_like(totals).index_add_(0, segment, plan)
        plan = plan * totals.reciprocal().index_select(0, segment)
        plan = plan / plan.sum(dim=1, keepdim=True)
    plan = torch.where(valid[:, None], plan, 0.0)
    return _first_best(plan), plan


def _first_best(plan: Tensor) -> Tensor:
    """Arg-max over the components; entries equal but for rounding are ties: lowest index. (n, M) -> (n,)."""
    components = plan.shape[1]
    best = plan >= plan.amax(dim=1, keepdim=True) * (1 - 1e-6)
    # Floating point, because torch reduces integers along a short last dimension many times more slowly.
    from_last = torch.arange(components, 0, -1, device=plan.device, dtype=torch.float32)
    index = components - torch.where(best, from_last, 0.0).amax(dim=1).long()
    # A row of NaN (densities of a whole class all zero) has no best entry.
    return torch.where(index == components, 0, index)


def _check_options(iterations: int, epsilon: float) -> None:
    if iterations < 1:
        raise ValueError(
            f"iterations (MODEL.GMM.SINKHORN_ITERATIONS): expected at least 1, found {iterations}"
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon (MODEL.GMM.SINKHORN_EPSILON): expected a positive number, found {epsilon}")
