"""Starting a class's mixture from its data instead of at random.

In a memory that starts empty, classes without a correct pixel never store one, and so rare classes stay
random (the released GMMSeg code has random vectors in it, which count). Here a class waits until it has seen
enough labelled features; spherical k-means then gives its components means, scales and a first content of
their memories.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import collectives
from .memory import ComponentGroups, evenly_spaced_indices


def kmeans_plus_plus(features: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Seeds of k-means++ (Arthur and Vassilvitskii, 2007). features: (n, D) -> (clusters, D)."""
    first = torch.randint(len(features), (1,), generator=generator, device=features.device)
    seeds = [features[first[0]]]
    nearest = (features - seeds[0]).square().sum(1)
    for _ in range(clusters - 1):
        # Features that all coincide leave no distance to draw by: any of them is as good.
        weight = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        pick = torch.multinomial(weight, 1, generator=generator)[0]
        seeds.append(features[pick])
        nearest = torch.minimum(nearest, (features - seeds[-1]).square().sum(1))
    return torch.stack(seeds)


def spherical_kmeans(features: Tensor, clusters: int, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """k-means with unit-length centres on the sphere (Dhillon and Modha, 2001), always from the same seed.

    Args:
        features: (n, D) floating point, of unit length, n >= 1.
        clusters: M. A cluster that runs empty restarts at the feature worst served by its centre.
        rounds: rounds of assignment and update.

    Returns:
        centres: (M, D) unit length; assignment: (n,) int64.
    """
    generator = torch.Generator(device=features.device).manual_seed(0)
    centres = F.normalize(kmeans_plus_plus(features, clusters, generator), dim=1)
    assignment = (features @ centres.t()).argmax(1)
    for _ in range(rounds):
        one_hot = F.one_hot(assignment, clusters).to(features.dtype)
        centres = F.normalize(one_hot.t() @ features, dim=1)
        similarity = features @ centres.t()
        empty = (one_hot.sum(0) == 0).nonzero().flatten()
        if len(empty):
            worst = similarity.amax(1).argsort()
            # Fewer features than empty clusters serve several of them.
            centres[empty] = features[worst[torch.arange(len(empty), device=worst.device) % len(worst)]]
            similarity = features @ centres.t()
        assignment = similarity.argmax(1)
    return centres, assignment


class WarmStartBuffer(nn.Module):
    """Collects the first features of every class, until the class can be initialised.

    Args:
        num_classes: C. capacity: features needed to initialise a class. dim: D.
    """

    features: Tensor
    count: Tensor

    def __init__(self, num_classes: int, capacity: int, dim: int) -> None:
        super().__init__()
        self.capacity = capacity
        # One slot more than the capacity takes what does not fit.
        self.register_buffer("features", torch.zeros(num_classes, capacity + 1, dim))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def add_batch(self, features: Tensor, labels: Tensor, samples: int) -> None:
        """Keep at most ``samples`` evenly spaced features a class. features: (N, D); labels: (N,) int64."""
        if not len(features):
            return
        groups = ComponentGroups(labels, len(self.count))
        within, valid = evenly_spaced_indices(groups.counts, samples)
        position = self.count[:, None] + torch.arange(samples, device=features.device)
        slot = torch.where(valid, position, self.capacity).clamp(max=self.capacity)
        row = torch.arange(len(slot), device=slot.device)[:, None]
        self.features[row, slot] = features[groups.pixel_at(within)].float()
        self.count.copy_((self.count + valid.sum(1)).clamp(max=self.capacity))

    @torch.no_grad()
    def ready_classes(self, waiting: Tensor, least: int | None = None) -> list[int]:
        """Classes of which the ranks together have ``least`` features, by default the capacity. waiting: (C,)
        bool, the same on every rank."""
        total = collectives.sum_over_ranks(self.count.clone())
        return (waiting & (total >= (least or self.capacity))).nonzero().flatten().tolist()

    @torch.no_grad()
    def take(self, index: int) -> Tensor:
        """All ranks' features of a class, (n, D), in rank order; the class's buffer is emptied."""
        counts = collectives.gather_stack(self.count[index]).tolist()
        stored = collectives.gather_stack(self.features[index, : self.capacity])
        self.count[index] = 0
        return torch.cat([part[:count] for part, count in zip(stored, counts, strict=True)])
