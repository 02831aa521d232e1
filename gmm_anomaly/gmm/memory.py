"""The feature memory: which pixels of a batch enter it, a ring per component, and its statistics.

EM reads the statistics only (O(C M D)), never the ring; the ring exists so that a feature can be subtracted
when it leaves. With several ranks each keeps the features it brought itself, and only statistics travel, in
single precision: against the rings the sums of unit features drift by about 1e-8 a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import collectives
from .gpu import Replayed

EMPTY, HELD, ELSEWHERE = 0, 1, 2


def evenly_spaced_indices(counts: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Positions to take from sequences of given lengths.

    A sequence no longer than ``samples`` is taken whole; of a longer one the positions
    ``linspace(0, n - 1, samples)`` truncated to integers, in single precision, as the GMMSeg code does.

    Args:
        counts: (...,) int64 lengths.
        samples: S.

    Returns:
        indices: (..., S) int64; valid: (..., S) bool, false past the end of a short sequence.
    """
    position = torch.arange(samples, device=counts.device)
    n = counts[..., None]
    last = (n - 1).float()
    step = last / max(samples - 1, 1)
    # torch.linspace counts the first half from the start and the second half from the end.
    rising = step * position
    falling = last - step * (samples - 1 - position)
    spaced = torch.where(position < samples // 2 if samples > 1 else position == 0, rising, falling).long()
    return torch.where(n > samples, spaced, position), position < n


class ComponentGroups:
    """Pixels grouped by component, in their original order; no shape depends on the data.

    Args:
        component: (N,) int64; values outside ``0 .. num_components - 1`` belong to no group.
        num_components: number of groups.
    """

    def __init__(self, component: Tensor, num_components: int) -> None:
        inside = (component >= 0) & (component < num_components)
        key = torch.where(inside, component, num_components).to(torch.int32)
        self.order = torch.argsort(key, stable=True)
        counts = torch.zeros(num_components + 1, dtype=torch.int64, device=component.device)
        counts.scatter_add_(0, key.long(), torch.ones_like(component))
        self.starts = (counts.cumsum(0) - counts)[:-1]
        self.counts = counts[:-1]

    def pixel_at(self, within: Tensor) -> Tensor:
        """Pixels at positions of each group. within: (num_components, S) -> indices of the same shape, int64.

        Positions outside a group give some pixel's index: mask them.
        """
        flat = (self.starts[:, None] + within).clamp_(0, max(len(self.order) - 1, 0))
        return self.order[flat]


class FeatureMemory(nn.Module):
    """A ring of ``slots`` features for each of ``num_components`` components.

    A checkpoint always has the statistics, the ring only with ``save_ring``. After loading without it (or
    with one of another size or type), the features that were in the ring leave as their average, slot by
    slot: means and variances continue as if nothing had happened, in expectation.

    Args:
        num_components: rings, C * M.
        slots: K, features per ring.
        dim: D.
        dtype: storage type of the ring, float32 or float16. Statistics are float64 of the stored values.
        save_ring: write the ring into the state dict.

    Attributes:
        count: (C*M,) int64, features held. total, total_square: (C*M, D) float64.

    Raises:
        ValueError: a storage type other than float32 and float16.
    """

    count: Tensor
    pointer: Tensor
    total: Tensor
    total_square: Tensor
    lost_count: Tensor
    lost_total: Tensor
    lost_total_square: Tensor
    ring: Tensor
    slot_state: Tensor

    def __init__(
        self,
        num_components: int,
        slots: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        save_ring: bool = False,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"dtype of the memory: expected torch.float32 or torch.float16, found {dtype}")
        self.slots = slots
        self.save_ring = save_ring
        # "lost" is what the statistics count although no rank holds it any more.
        for prefix, persistent in (("", True), ("lost_", False)):
            counts = torch.zeros(num_components, dtype=torch.int64)
            self.register_buffer(prefix + "count", counts, persistent)
            for name in ("total", "total_square"):
                sums = torch.zeros(num_components, dim, dtype=torch.float64)
                self.register_buffer(prefix + name, sums, persistent)
        self.register_buffer("pointer", torch.zeros(num_components, dtype=torch.int64))
        # One slot more than K: what must not be written goes there, so that shapes never depend on the data.
        ring = torch.zeros(num_components, slots + 1, dim, dtype=dtype)
        self.register_buffer("ring", ring, persistent=save_ring)
        state = torch.zeros(num_components, slots + 1, dtype=torch.uint8)
        self.register_buffer("slot_state", state, persistent=save_ring)
        self._replayed = Replayed(self._store, self.buffers)

    @torch.no_grad()
    def add_batch(self, features: Tensor, component: Tensor, samples: int) -> None:
        """Store at most ``samples`` evenly spaced features per component out of this batch, over all ranks.

        The batch of several ranks counts as one: rank 0's pixels first. Every rank calls, with pixels or not.

        Args:
            features: (N, D) floating point.
            component: (N,) int64 in ``0 .. C*M - 1``; anything else is not stored.
            samples: S, at most ``slots``.
        """
        # What several ranks tell each other is no part of a graph.
        store = self._replayed if collectives.world_size() == 1 else self._store
        store(features, component, samples)

    def _store(self, features: Tensor, component: Tensor, samples: int) -> tuple[()]:
        # Row j of a component is its j-th newcomer of all ranks.
        groups = ComponentGroups(component, len(self.count))
        by_rank = collectives.gather_stack(groups.counts.to(torch.int32)).long()
        before = by_rank[: collectives.rank()].sum(dim=0)
        entering = by_rank.sum(dim=0)
        within, valid = evenly_spaced_indices(entering, samples)
        within = within - before[:, None]
        mine = valid & (within >= 0) & (within < groups.counts[:, None])
        if len(features):
            new = features[groups.pixel_at(within)].to(self.ring.dtype)
        else:
            new = self.ring.new_zeros(*within.shape, self.ring.shape[-1])
        entering = entering.clamp(max=samples)

        position = torch.arange(samples, device=entering.device)
        slot = torch.where(valid, (self.pointer[:, None] + position) % self.slots, self.slots)
        row = torch.arange(len(slot), device=slot.device)[:, None]
        # A ring fills from slot 0, so newcomers displace a feature once the free slots are used up.
        occupied = valid & (position >= (self.slots - self.count)[:, None])
        state = self.slot_state[row, slot]

        # Selected, not multiplied: a slot or row that does not count may hold NaN.
        old = torch.where((state == HELD)[..., None], self.ring[row, slot].double(), 0.0)
        entered = torch.where(mine[..., None], new.double(), 0.0)
        change = torch.stack((entered.sum(1) - old.sum(1), entered.square().sum(1) - old.square().sum(1)))
        if collectives.world_size() > 1:
            change = collectives.sum_over_ranks(change.float()).double()

        lost = (occupied & (state == EMPTY)).sum(1)
        share = (lost.double() / self.lost_count.clamp(min=1))[:, None]
        lost_change, lost_square_change = share * self.lost_total, share * self.lost_total_square
        self.total += change[0] - lost_change
        self.total_square += change[1] - lost_square_change
        self.lost_total -= lost_change
        self.lost_total_square -= lost_square_change
        self.lost_count -= lost

        self.ring[row, slot] = new
        self.slot_state[row, slot] = torch.where(mine, HELD, ELSEWHERE).to(torch.uint8)
        self.count.copy_((self.count + entering).clamp(max=self.slots))
        self.pointer.copy_((self.pointer + entering) % self.slots)
        return ()

    @torch.no_grad()
    def fill(self, features: Iterable[Tensor], pointer: Tensor) -> None:
        """Make the rings full. features: (K, D) a ring; pointer: (C*M,) int64, next slot to overwrite."""
        for index, of_component in enumerate(features):
            stored = of_component.to(self.ring)
            self.ring[index, : self.slots] = stored
            self.count[index] = self.slots
            # One by one: a double-precision copy of a whole memory is 1.5 GB.
            self.total[index] = stored.double().sum(0)
            self.total_square[index] = stored.double().square().sum(0)
        self.slot_state[:, : self.slots] = HELD
        self.pointer.copy_(pointer)

    @torch.no_grad()
    def replace(self, rings: Tensor, features: Tensor, ring: Tensor) -> None:
        """Give some components a new content. Collective; what rank 0 passes is taken, and held there.

        Args:
            rings: (R,) int64, the components.
            features: (N, D) floating point. ring: (N,) int64, place in ``rings`` that a feature goes to;
                anything else goes nowhere. Of more than ``slots``, evenly spaced ones stay.
        """
        groups = ComponentGroups(ring, len(rings))
        room = min(self.slots, len(features))
        within, valid = evenly_spaced_indices(groups.counts, room)
        new = features[groups.pixel_at(within)].to(self.ring.dtype)
        kept = torch.where(valid[..., None], new.double(), 0.0)
        self.ring[rings[:, None], torch.arange(room, device=rings.device)] = new
        values = {"count": valid.sum(1), "total": kept.sum(1), "total_square": kept.square().sum(1)}
        for name, value in values.items():
            collectives.broadcast_from_first(value)
            self.get_buffer(name)[rings] = value
            self.get_buffer(f"lost_{name}")[rings] = 0
        self.pointer[rings] = values["count"] % self.slots
        used = torch.arange(self.slots + 1, device=rings.device) < values["count"][:, None]
        self.slot_state[rings] = used.to(torch.uint8) * (HELD if collectives.rank() == 0 else ELSEWHERE)

    def moments(self, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """(C, M) counts; (C, M, D) float64 directions of the sums, and the biased mean squared deviations
        from them, not from the mean (GMMSeg, Eq. 9, as released), without any floor."""
        n = self.count.clamp(min=1)[:, None].double()
        mean, mean_square = self.total / n, self.total_square / n
        direction = F.normalize(mean, dim=-1)
        variance = (mean_square - 2 * direction * mean + direction.square()).clamp(min=0)
        shape = num_classes, -1
        return self.count.unflatten(0, shape), direction.unflatten(0, shape), variance.unflatten(0, shape)

    @torch.no_grad()
    def write_off_missing(self) -> None:
        """Account for the slots that count but are not held here as lost."""
        state = self.slot_state[:, : self.slots]
        state[state == ELSEWHERE] = EMPTY
        self.lost_count.copy_(self.count - (state == HELD).sum(1))
        self.lost_total.copy_(self.total)
        self.lost_total_square.copy_(self.total_square)
        for index, held in enumerate(state == HELD):
            features = self.ring[index, : self.slots][held].double()
            self.lost_total[index] -= features.sum(0)
            self.lost_total_square[index] -= features.square().sum(0)

    @torch.no_grad()
    def broadcast(self) -> None:
        """Give every rank the statistics of rank 0, which alone holds the features from then on.

        Needed after loading as well: every rank loads the same ring, but only one may count it.
        """
        self.write_off_missing()
        for name, buffer in self.named_buffers():
            if name != "ring":
                collectives.broadcast_from_first(buffer)
        if collectives.rank() > 0:
            self.slot_state[self.slot_state == HELD] = ELSEWHERE

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take a ring only where it is the one that was summed; statistics of more than ``slots`` features
        are scaled down to that."""
        own = {prefix + name: getattr(self, name) for name in ("ring", "slot_state")}
        stored = [state_dict.pop(key, None) for key in own]
        fits = all(
            value is not None and (value.shape, value.dtype) == (buffer.shape, buffer.dtype)
            for value, buffer in zip(stored, own.values(), strict=True)
        )
        if not (self.save_ring and fits):
            self.slot_state.zero_()
            stored = list(own.values())
        if self.save_ring:
            state_dict.update(zip(own, stored, strict=True))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        kept = (self.slots / self.count.clamp(min=self.slots).double())[:, None]
        self.total.mul_(kept)
        self.total_square.mul_(kept)
        self.count.clamp_(max=self.slots)
        self.pointer.remainder_(self.slots)
        self.write_off_missing()
