"""Starting a class's mixture from its data instead of at random.

In a memory that starts empty, classes without a correct pixel never store one, and so rare classes stay
random (the released GMMSeg code has random vectors in it, which count). Here a class waits until it has seen
enough labelled features; spherical k-means then gives its components means, scales and a first content of
their memories.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import collectives
from .gpu import to_host
from .memory import ComponentGroups, evenly_spaced_indices

DRAWS = 3  # of each seed of k-means++


def spherical_kmeans(
    features: Tensor, clusters: int, rounds: int = 10, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """k-means with unit-length centres on the sphere (Dhillon and Modha, 2001), always from the same seed.

    Many sets at once, each as if it were alone. Shapes do not depend on the data: a GPU is never waited for.

    Args:
        features: (..., n, D) floating point, of unit length, n >= 1.
        clusters: M. A cluster that runs empty restarts at the feature worst served by its centre.
        rounds: rounds of assignment and update.
        valid: (..., n) bool, the features that a set has, one or more, in front; None: all.

    Returns:
        centres: (..., M, D) unit length; assignment: (..., n) int64.
    """
    if valid is None:
        valid = torch.ones(features.shape[:-1], dtype=torch.bool, device=features.device)
    centres = _kmeans_plus_plus(features, valid, clusters)
    assignment, index = (features @ centres.mT).argmax(-1), torch.arange(clusters, device=features.device)
    for _ in range(rounds):
        members = ((assignment[..., None] == index) & valid[..., None]).to(features.dtype)
        centres = F.normalize(members.mT @ features, dim=-1)
        empty = members.sum(-2) == 0
        served = (features @ centres.mT).amax(-1).masked_fill(~valid, torch.inf)
        # Fewer features than empty clusters serve several of them.
        turn = (empty.cumsum(-1) - 1).clamp(min=0) % valid.sum(-1, keepdim=True).clamp(min=1)
        worst = _rows(features, served.argsort(-1).gather(-1, turn))
        centres = torch.where(empty[..., None], worst, centres)
        assignment = (features @ centres.mT).argmax(-1)
    return centres, assignment


def _kmeans_plus_plus(features: Tensor, valid: Tensor, clusters: int) -> Tensor:
    """Seeds of k-means++ (Arthur and Vassilvitskii, 2007), (..., clusters, D); each the best of some draws,
    as in scikit-learn."""
    generator = torch.Generator(device=features.device).manual_seed(0)
    # The least of exponential variables over weights is an index drawn by weight (torch.multinomial would
    # wait for a GPU). A place in a set has its own ones, so that no set depends on the others.
    drawn = torch.rand(valid.shape[-1], clusters, DRAWS, generator=generator, device=features.device)
    nearest, weight, seeds = torch.full_like(drawn[..., 0, 0], torch.inf), valid.float(), []
    for race in (-drawn.log()).unbind(1):
        candidates = _rows(features, (weight[..., None] / race).argmax(-2))
        distance = (features[..., None, :] - candidates[..., None, :, :]).square().sum(-1)
        left = torch.minimum(nearest[..., None], distance) * valid[..., None]
        best = left.sum(-2).argmin(-1, keepdim=True)
        seeds.append(_rows(candidates, best))
        nearest = left.gather(-1, best[..., None, :].expand(*left.shape[:-1], 1))[..., 0]
        # Features that all coincide leave no distance to draw by: any of them is as good.
        weight = torch.where(nearest.sum(-1, keepdim=True) > 0, nearest, valid.float())
    return torch.cat(seeds, dim=-2)


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """features: (..., n, D); index: (..., k) int64 -> (..., k, D)."""
    return features.gather(-2, index[..., None].expand(*index.shape, features.shape[-1]))


class WarmStartBuffer(nn.Module):
    """Collects the first features of every class, until the class can be initialised.

    Args:
        num_classes: C. capacity: features needed to initialise a class. dim: D.
    """

    features: Tensor
    count: Tensor
    _answer: tuple[Tensor, Callable[[], Tensor]] | None

    def __init__(self, num_classes: int, capacity: int, dim: int) -> None:
        super().__init__()
        self.capacity = capacity
        # One slot more than the capacity takes what does not fit.
        self.register_buffer("features", torch.zeros(num_classes, capacity + 1, dim))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.forget_answer()

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
    def due(self, waiting: Tensor, least: int | None = None) -> Tensor:
        """Classes to start now: those of which the ranks together have enough features.

        How many these are, the host learns from a GPU one call later, without waiting for it; on the CPU, and
        where a training ends (``least``), at once.

        Args:
            waiting: (C,) bool, those that may start, the same on every rank.
            least: features that are enough; None: the capacity.

        Returns:
            (R,) int64, ascending; their features are for :meth:`take`.
        """
        late = self._answers_late and least is None
        answer = self._answer if late else self._ask(waiting, least)
        classes = torch.zeros(0, dtype=torch.int64, device=waiting.device)
        if answer is not None:
            ready, count = answer
            classes = (~ready).byte().argsort(stable=True)[: int(count())]
        self._answer = self._ask(waiting.index_fill(0, classes, False), None) if late else None
        return classes

    @property
    def _answers_late(self) -> bool:
        return self.count.is_cuda

    def _ask(self, waiting: Tensor, least: int | None) -> tuple[Tensor, Callable[[], Tensor]]:
        """(C,) bool, which are ready; their number, on its way to the host."""
        ready = waiting & (collectives.sum_over_ranks(self.count.clone()) >= (least or self.capacity))
        return ready, to_host(ready.sum())

    def forget_answer(self) -> None:
        """After a load, or whatever else sets counts from outside."""
        self._answer = None

    @torch.no_grad()
    def take(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """All ranks' features of some classes, in rank order; their buffers are emptied.

        Args:
            classes: (R,) int64.

        Returns:
            features: (R, n, D), n the room of all ranks; valid: (R, n) bool, those that there are, in front.
        """
        counts = collectives.gather_stack(self.count[classes])
        stored = collectives.gather_stack(self.features[classes, : self.capacity])
        self.count[classes] = 0
        valid = torch.arange(self.capacity, device=counts.device) < counts[..., None]
        stored, valid = stored.transpose(0, 1).flatten(1, 2), valid.transpose(0, 1).flatten(1)
        front = (~valid).byte().argsort(dim=1, stable=True)
        return _rows(stored, front), valid.gather(1, front)
