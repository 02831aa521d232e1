"""Numbers that tell whether mixtures are well: from a bank's state, and from labelled pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .bank import GaussianMixtureBank
from .density import PIXELS_PER_CHUNK, class_log_density, component_log_prob, own_class_log_prob


def state_numbers(bank: GaussianMixtureBank) -> dict[str, float]:
    """Numbers of the state alone; each is of the bank's own components, whatever pixels there are.

    Returns:
        ``fitted_classes``: classes that can be scored. ``mean_scale``: mean standard deviation of the fitted
        components. ``scales_at_floor``: share of their variances within 10 % of the floor. ``memory_fill``:
        share of the memory's slots that hold a feature. ``empty_components``: components whose memory is
        empty.
    """
    count, scales = bank.memory.count, bank.scales.double()
    share = bank.fitted / (bank.fitted.sum() * bank.dim).clamp(min=1)
    at_floor = scales.square() < bank.variance_floor * 1.1
    numbers = {
        "fitted_classes": bank.known_classes.sum(),
        "mean_scale": torch.where(bank.fitted.any(), (scales.sum(-1) * share).sum(), 1.0),
        "scales_at_floor": (at_floor.sum(-1) * share).sum(),
        "memory_fill": count.double().mean() / bank.memory.slots,
        "empty_components": (count == 0).sum(),
    }
    # One wait for a GPU.
    values = torch.stack([value.double() for value in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def effective_components(weights: Tensor) -> Tensor:
    """How many components a class really uses: ``exp(-sum_m w_m log w_m)`` of their shares ``w``.

    Args:
        weights: (..., M) non-negative; shares need not be normalised.

    Returns:
        (...,) float64 from 1 (a single one) to M (all alike); NaN where all weights are 0.
    """
    shares = weights.double() / weights.double().sum(dim=-1, keepdim=True)
    return torch.exp(-torch.special.xlogy(shares, shares).sum(dim=-1))


class PixelHealth(NamedTuple):
    """How the mixtures of their own classes fit labelled pixels.

    Attributes:
        pixels: (C,) int64, pixels of each class.
        effective_components: (C,) float64, of the mean responsibilities over the class's pixels; NaN for a
            class without pixels or without a fitted mixture.
        assignment_entropy: mean entropy of a pixel's responsibilities divided by log M: 0 where each pixel
            has its component, 1 where components cannot be told apart; 0 with one component, NaN without
            pixels.
        log_likelihood: mean log-density of a pixel under the mixture of its class (``logsumexp`` with uniform
            weights, whatever ``MODEL.GMM.REDUCTION`` says), in nats; NaN without pixels.
    """

    pixels: Tensor
    effective_components: Tensor
    assignment_entropy: float
    log_likelihood: float


@torch.no_grad()
def pixel_health(
    bank: GaussianMixtureBank, features: Tensor, labels: Tensor, *, chunk_size: int = PIXELS_PER_CHUNK
) -> PixelHealth:
    """The health of a bank on labelled pixels. Pixels of classes that were never fitted are left out, and so
    are components that were not.

    Args:
        features: (N, D) floating point. labels: (N,) integer; anything outside ``0 .. C-1`` is left out.
        chunk_size: pixels whose densities exist at a time.
    """
    classes, components = bank.num_classes, bank.num_components
    inside = (labels >= 0) & (labels < classes)
    inside &= bank.known_classes[torch.where(inside, labels, 0)]
    features, labels = features[inside].float(), labels[inside].long()
    weights = torch.zeros(classes, components, dtype=torch.float64, device=features.device)
    entropy = likelihood = 0.0
    for part, own in zip(features.split(chunk_size), labels.split(chunk_size), strict=True):
        log_prob = component_log_prob(part, bank.unit_means, bank.scales, chunk_size=chunk_size).double()
        log_prob = own_class_log_prob(log_prob, own)
        log_prob = log_prob.masked_fill(~bank.fitted[own], -torch.inf)
        responsibility = log_prob.softmax(dim=1)
        weights.index_add_(0, own, responsibility)
        entropy -= float(torch.special.xlogy(responsibility, responsibility).sum())
        likelihood += float(class_log_density(log_prob[:, None], "logsumexp").sum())
    pixels = torch.bincount(labels, minlength=classes)
    total = len(labels)
    return PixelHealth(
        pixels,
        effective_components(weights),
        math.nan if not total else 0.0 if components == 1 else entropy / (total * math.log(components)),
        likelihood / total if total else math.nan,
    )
