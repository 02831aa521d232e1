"""Densities by broadcast, and EM of GMMSeg in loops: what :mod:`gmm_anomaly.gmm` computes, plainly.

Rings are read whole at every EM step, as the formulas say (GMMSeg, Eqs. 8 and 9).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, sinkhorn_assign


def broadcast_log_prob(x: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Log-densities by the difference of every pixel and every mean, as in the public GMMSeg code.

    Args:
        x: (N, D). means, scales: (C, M, D).

    Returns:
        (N, C, M), by way of (N, C * M, D) numbers, two of them at a time.
    """
    normals = Normal(means.flatten(0, 1), scales.flatten(0, 1), validate_args=False)
    log_prob = Independent(normals, 1, validate_args=False).log_prob(x[:, None])
    return log_prob.view(len(x), *means.shape[:2])


class PlainEM:
    """Means, scales and rings of a bank, and the same steps on them.

    Args:
        bank: copied; its rings are full.
    """

    def __init__(self, bank: GaussianMixtureBank) -> None:
        self.means, self.scales = bank.unit_means.clone(), bank.scales.clone()
        memory = bank.memory
        self.rings = [ring[: memory.slots].clone() for ring in memory.ring]
        self.pointers = memory.pointer.tolist()
        self.samples = bank.samples_per_update
        self.momentum_mean = bank.momentum_mean
        self.variance_floor = bank.variance_floor

    def record(self, features: Tensor, log_prob: Tensor, labels: Tensor, correct: Tensor) -> Tensor:
        """Assign the pixels of each class to its components, and put some of the correct ones into the rings.

        Args:
            features: (N, D). log_prob: (N, C, M). labels: (N,) int64. correct: (N,) bool.

        Returns:
            (N,) int64 components, 0 where the label is no class.
        """
        classes, components = self.means.shape[:2]
        assignment = torch.zeros_like(labels)
        for index in range(classes):
            pixels = labels == index
            if not pixels.any():
                continue
            own = log_prob[pixels, index]
            chosen, _ = sinkhorn_assign(own / own.abs().max())
            assignment[pixels] = chosen
            of_class, usable = features[pixels], correct[pixels]
            for component in range(components):
                newcomers = of_class[usable & (chosen == component)]
                self._push(index * components + component, newcomers)
        return assignment

    def _push(self, row: int, newcomers: Tensor) -> None:
        count = len(newcomers)
        if not count:
            return
        if count > self.samples:
            newcomers = newcomers[torch.linspace(0, count - 1, self.samples).long()]
        ring = self.rings[row]
        slots = (self.pointers[row] + torch.arange(len(newcomers))) % len(ring)
        ring[slots.to(ring.device)] = newcomers
        self.pointers[row] = (self.pointers[row] + len(newcomers)) % len(ring)

    def update(self, classes: Tensor) -> None:
        """The EM step. classes: indices of those to update."""
        components = self.means.shape[1]
        for index in classes.tolist():
            for component in range(components):
                stored = self.rings[index * components + component]
                direction = F.normalize(stored.sum(0), dim=0)
                variance = (stored - direction).square().mean(0)
                current = F.normalize(self.means[index, component], dim=0)
                keep = self.momentum_mean
                self.means[index, component] = keep * current + (1 - keep) * direction
                self.scales[index, component] = (variance + self.variance_floor).sqrt()
