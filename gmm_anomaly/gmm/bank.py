"""Fitting the mixtures by EM over a feature memory (GMMSeg, Liang et al., NeurIPS 2022, section 3.3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import collectives
from .em_options import check_em_options, check_sizes
from .empty_components import reseed_empty
from .memory import FeatureMemory
from .mixture import GaussianMixtures
from .reference_state import reference_sizes
from .statistics import mean_and_variance
from .warm_start import WarmStartBuffer, start_components

# A floor of zero must not let a density become infinite.
LEAST_SCALE = 1e-6


class _Recorded(NamedTuple):
    features: Tensor
    labels: Tensor
    component: Tensor


class GaussianMixtureBank(GaussianMixtures):
    """Mixtures of M diagonal Gaussians for each of C classes, and the memory that EM fits them on.

    ``record`` remembers a batch, ``commit`` moves what was recorded into the memory, ``update`` runs the EM
    step. Means and scales change in ``update`` only, and where ``commit`` finds a class ready for its warm
    start (``initialise``): a forward pass never changes them. With several ranks all but ``record`` are
    collective: every rank calls them, and but for the warm start only counts and sums of features travel.

    Args:
        num_classes: C.
        num_components: M components per class.
        dim: D, dimensions of a feature.
        memory_size: K, features kept per component.
        samples_per_update: features that may enter a component's memory per recorded batch; evenly spaced
            ones of the correctly classified pixels, over all ranks. At most ``memory_size``.
        momentum_mean: ``mean <- m * mean + (1 - m) * direction of the stored features``.
        momentum_scale: likewise for the standard deviations; 0 replaces them.
        variance_floor: added to every variance.
        reduction: how components make a class density, see :func:`class_log_density`.
        fill_slots: misclassified pixels enter a component's memory as well until it holds this many (0:
            never, as in the paper).
        warm_start_features: a class's components start from k-means over this many of its features (0: from
            random directions with unit scales, as in the paper).
        kmeans_rounds: rounds of that k-means.
        memory_dtype: storage type of the memory, ``torch.float32`` or ``torch.float16``.
        save_memory: write the memory (not only its statistics) into the state dict.
        empty_components: at an EM step a component whose memory is empty keeps its state ("keep", the paper)
            or splits another one of its class ("reseed", :func:`reseed_empty`).

    Attributes:
        means, scales, fitted: see :class:`GaussianMixtures`; scales are at least ``sqrt(variance_floor)``
            once fitted, and never below 1e-6.
        memory: the :class:`FeatureMemory` that EM reads.
        reseeded: scalar int64, how often a component was re-seeded in this process.

    Raises:
        ValueError: a size, momentum, floor or memory type out of range; more samples than slots.
    """

    started: Tensor
    seen: Tensor
    reseeded: Tensor

    def __init__(
        self,
        num_classes: int,
        num_components: int,
        dim: int,
        memory_size: int = 32000,
        samples_per_update: int = 20,
        momentum_mean: float = 0.999,
        momentum_scale: float = 0.0,
        variance_floor: float = 1e-2,
        *,
        reduction: str = "max",
        fill_slots: int = 0,
        warm_start_features: int = 0,
        kmeans_rounds: int = 10,
        memory_dtype: torch.dtype = torch.float32,
        save_memory: bool = False,
        empty_components: str = "keep",
    ) -> None:
        super().__init__(num_classes, num_components, dim, reduction=reduction)
        check_sizes(
            memory_size=(memory_size, 1),
            samples_per_update=(samples_per_update, 1),
            fill_slots=(fill_slots, 0),
            warm_start_features=(warm_start_features, 0),
            kmeans_rounds=(kmeans_rounds, 0),
        )
        check_em_options(
            memory_size=memory_size,
            samples_per_update=samples_per_update,
            momentum_mean=momentum_mean,
            momentum_scale=momentum_scale,
            variance_floor=variance_floor,
            empty_components=empty_components,
        )
        self.empty_components = empty_components
        self.samples_per_update = samples_per_update
        self.momentum_mean = momentum_mean
        self.momentum_scale = momentum_scale
        self.variance_floor = variance_floor
        self.fill_slots = fill_slots
        self.kmeans_rounds = kmeans_rounds

        # Classes whose components may take features; a warm start makes them wait for their initialisation.
        self.register_buffer("started", torch.full((num_classes,), warm_start_features == 0))
        # Classes recorded since the last update.
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("reseeded", torch.zeros((), dtype=torch.int64), persistent=False)
        self.memory = FeatureMemory(
            num_classes * num_components, memory_size, dim, dtype=memory_dtype, save_ring=save_memory
        )
        self.warm_start = (
            WarmStartBuffer(num_classes, warm_start_features, dim) if warm_start_features else None
        )
        self._all_started = warm_start_features == 0
        # Whether a hook (gmm_anomaly.engine.EMHook) will commit what is recorded.
        self.em_attached = False
        self._recorded: list[_Recorded] = []
        self.register_load_state_dict_post_hook(GaussianMixtureBank._after_loading)

    @classmethod
    def from_reference_state(
        cls, means: Tensor, diagonal: Tensor, queue: Tensor, queue_ptr: Tensor, **options: Any
    ) -> GaussianMixtureBank:
        """A bank in the state that the public GMMSeg code keeps, its memory full.

        Args:
            means: (C, M, D). diagonal: (C, M, D) standard deviations (that code's name for them).
            queue: (C * M, D, K) stored features, class-major. queue_ptr: (C * M,) next slot to overwrite.
            options: keyword arguments of the constructor; sizes come from the tensors.

        Raises:
            ValueError: shapes that do not fit each other, or a ``memory_size`` that is not K.
        """
        classes, components, dim, slots = reference_sizes(means, diagonal, queue, queue_ptr)
        if options.setdefault("memory_size", slots) != slots:
            raise ValueError(f"memory_size: the queue has {slots} slots, found {options['memory_size']}")
        bank = cls(classes, components, dim, **options)
        bank.means.copy_(means)
        bank.scales.copy_(diagonal)
        bank.memory.fill(queue.transpose(1, 2), queue_ptr.long())
        bank.fitted.fill_(True)
        bank.started.fill_(True)
        bank._all_started = True
        return bank

    def _after_loading(self, _incompatible: object) -> None:
        if not bool(self.means.isfinite().all() & (self.scales.isfinite() & (self.scales > 0)).all()):
            raise ValueError(
                "the checkpoint's mixtures have means that are not finite, or standard deviations that are "
                "not positive and finite; take an earlier checkpoint (MODEL.WEIGHTS)"
            )
        if self.warm_start is None:
            # Without a warm start no class waits, also where that of the checkpoint did.
            self.started.fill_(True)
        self._all_started = bool(self.started.all())
        self._recorded.clear()

    @torch.no_grad()
    def record(self, features: Tensor, labels: Tensor, assignment: Tensor, correct: Tensor) -> None:
        """Remember the pixels of a batch for the next ``commit``; neither mixture nor memory changes.

        Args:
            features: (N, D) floating point; a pixel with NaN or infinity in it is ignored.
            labels: (N,) integer classes; anything outside ``0 .. C-1`` is ignored.
            assignment: (N,) integer component of each pixel inside its class; anything outside ``0 .. M-1``
                does not enter the memory.
            correct: (N,) bool, pixels whose predicted class is their label; the others do not enter the
                memory.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features: expected shape (N, {self.dim}), found {tuple(features.shape)}")
        for name, tensor in (("labels", labels), ("assignment", assignment), ("correct", correct)):
            if tensor.shape != features.shape[:1]:
                raise ValueError(f"{name}: expected shape ({len(features)},), found {tuple(tensor.shape)}")
        features, labels, assignment = features.detach().float(), labels.long(), assignment.long()
        # A sum is finite where all its terms are; looking at each of them takes six times as long.
        known = (labels >= 0) & (labels < self.num_classes) & features.sum(dim=1).isfinite()
        labels = torch.where(known, labels, self.num_classes)
        storable = known & (assignment >= 0) & (assignment < self.num_components)
        component = torch.where(storable, labels * self.num_components + assignment, 0)
        entering = correct.bool()
        if self.fill_slots:
            entering = entering | (self.memory.count[component] < self.fill_slots)
        started = F.pad(self.started, (0, 1))[labels]
        component = torch.where(entering & storable & started, component, -1)
        self._recorded.append(_Recorded(features, labels, component))

    def discard_recorded(self) -> None:
        """Forget what was recorded since the last ``commit``: the batches of a step that is left out."""
        self._recorded.clear()

    @torch.no_grad()
    def commit(self) -> None:
        """Move recorded batches into the memory, oldest first.

        Collective over the ranks, which must have recorded the same number of batches (one per forward pass).
        """
        for batch in self._recorded:
            present = torch.zeros(self.num_classes + 1, dtype=torch.int32, device=batch.labels.device)
            present.index_fill_(0, batch.labels, 1)
            self.seen |= collectives.sum_over_ranks(present)[:-1] > 0
            self.memory.add_batch(batch.features, batch.component, self.samples_per_update)
            if self.warm_start is not None and not self._all_started:
                waiting = torch.where(F.pad(self.started, (0, 1))[batch.labels], -1, batch.labels)
                self.warm_start.add_batch(
                    batch.features, waiting, self.samples_per_update * self.num_components
                )
        self._recorded.clear()
        if not self._all_started:
            self._start_ready_classes()

    @torch.no_grad()
    def update(
        self, classes: Tensor | list[int] | None = None, *, momentum_mean: float | None = None
    ) -> None:
        """The EM step: commit what was recorded, then move components towards their memories' content.

        Args:
            classes: indices, or a (C,) bool mask, of the classes to update, the same on every rank; default:
                those that any rank recorded since the last update. What becomes of components whose memory
                is empty, ``empty_components`` says.
            momentum_mean: for this step, in place of the bank's own.
        """
        self.commit()
        if classes is None:
            chosen = self.seen.clone()
        else:
            chosen = torch.zeros_like(self.seen)
            selected = torch.as_tensor(classes, device=chosen.device)
            chosen[selected if selected.dtype == torch.bool else selected.long()] = True
        self.seen.zero_()

        count = self.memory.count.view(self.num_classes, self.num_components)
        shape = (self.num_classes, self.num_components, self.dim)
        direction, variance = mean_and_variance(
            count, self.memory.total.view(shape), self.memory.total_square.view(shape)
        )
        keep = self.momentum_mean if momentum_mean is None else momentum_mean
        current = self.unit_means
        means = keep * current.double() + (1 - keep) * direction
        new_scales = (variance + self.variance_floor).sqrt()
        scales = self.momentum_scale * self.scales.double() + (1 - self.momentum_scale) * new_scales
        # A running mean in single precision may end a rounding below the floor.
        scales = scales.float().clamp(min=max(self.variance_floor**0.5, LEAST_SCALE))
        moved = chosen[:, None] & (count > 0)
        self.means.copy_(torch.where(moved[..., None], means.float(), current))
        self.scales.copy_(torch.where(moved[..., None], scales, self.scales))
        self.fitted |= moved
        if self.empty_components == "reseed":
            self._reseed(chosen, count, variance)

    def _reseed(self, chosen: Tensor, count: Tensor, variance: Tensor) -> None:
        split = reseed_empty(self.unit_means, self.scales, variance, count)
        which = split.which & chosen[:, None]
        self.means.copy_(torch.where(which[..., None], split.means, self.means))
        self.scales.copy_(torch.where(which[..., None], split.scales, self.scales))
        self.fitted |= which
        self.reseeded += which.sum()

    def _start_ready_classes(self) -> None:
        assert self.warm_start is not None
        for index in self.warm_start.ready_classes(~self.started):
            self.initialise(index, self.warm_start.take(index))
        self._all_started = bool(self.started.all())

    @torch.no_grad()
    def initialise(self, index: int, features: Tensor) -> None:
        """Start a class's components from its features by spherical k-means, and put them into its memories.

        Collective over the ranks.

        Args:
            index: the class.
            features: (n, D) floating point, the same on every rank; n >= 1.

        Raises:
            ValueError: no such class, no features or ones of another dimension.
        """
        if not 0 <= index < self.num_classes:
            raise ValueError(f"index: expected a class in 0 .. {self.num_classes - 1}, found {index}")
        if features.dim() != 2 or features.shape[1] != self.dim or not len(features):
            raise ValueError(f"features: expected shape (n >= 1, {self.dim}), found {tuple(features.shape)}")
        unit = F.normalize(features.float(), dim=1)
        start = start_components(unit, self.num_components, self.kmeans_rounds)
        self.means[index] = start.means
        scales = (start.variance + self.variance_floor).sqrt().float()
        self.scales[index] = scales.clamp(min=max(self.variance_floor**0.5, LEAST_SCALE))
        for tensor in (self.means[index], self.scales[index]):
            collectives.broadcast_from_first(tensor)
        clusters = [unit[start.assignment == component] for component in range(self.num_components)]
        self.memory.replace(index * self.num_components, clusters)
        self.fitted[index] = True
        self.started[index] = True

    @torch.no_grad()
    def broadcast(self) -> None:
        """Give every rank the state of rank 0; call it once the model is built, wrapped and loaded.

        Detectron2's trainer neither seeds the ranks alike nor broadcasts buffers. What other ranks held in
        their memories counts as lost; what waited there for a warm start is collected again.
        """
        for name, buffer in self.named_buffers():
            if not name.startswith(("memory.", "warm_start.")):
                collectives.broadcast_from_first(buffer)
        self.memory.broadcast()
        if self.warm_start is not None and collectives.rank() > 0:
            self.warm_start.count.zero_()
        self._all_started = bool(self.started.all())

    def extra_repr(self) -> str:
        return (
            f"classes={self.num_classes}, components={self.num_components}, dim={self.dim}, "
            f"memory={self.memory.slots}, reduction={self.reduction}"
        )
