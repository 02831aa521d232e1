"""Fitting the mixtures by EM over a feature memory (GMMSeg, Liang et al., NeurIPS 2022, section 3.3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import collectives
from .gpu import Replayed
from .memory import FeatureMemory
from .mixtures import GaussianMixtures
from .warm_start import WarmStartBuffer, spherical_kmeans

LEAST_VARIANCE = 1e-6  # densities are sums of terms of the size of 1 / variance, in single precision


class GaussianMixtureBank(GaussianMixtures):
    """Mixtures of M diagonal Gaussians for each of C classes, and the memory that EM fits them on.

    ``record`` remembers a batch, ``commit`` moves it into the memory, ``update`` runs the EM step. Means and
    scales change in ``update``, and where ``commit`` finds a class ready for its warm start, never in a
    forward pass. With several ranks all but ``record`` are collective: every rank calls them, and but for the
    warm start only counts and sums of features travel.

    Args:
        num_classes: C. num_components: M, of each class. dim: D, dimensions of a feature.
        memory_size: K, features kept per component.
        samples_per_update: features that may enter a component's memory per recorded batch; evenly spaced
            ones of the correctly classified pixels, over all ranks. At most ``memory_size``.
        momentum_mean: ``mean <- m * mean + (1 - m) * direction of the stored features``.
        momentum_scale: likewise for the standard deviations.
        variance_floor: added to every variance, 1e-6 or more. reduction: see :func:`class_log_density`.
        fill_slots: misclassified pixels enter a component's memory too until it holds so many (0: never).
        warm_start_features: a class's components start from k-means over so many of its features (0: from
            random directions with unit scales).
        initial_memory: "empty", or (the released GMMSeg code) "random": full of random unit vectors, which
            count until features displace them.
        update_classes: those of an ``update`` that names none: "seen" by any rank since the last one, or
            (the released GMMSeg code) of the newest recorded "batch".
        memory_dtype, save_memory: ``dtype`` and ``save_ring`` of :class:`FeatureMemory`.

    Attributes:
        memory: the :class:`FeatureMemory` that EM reads.

    Raises:
        ValueError: a size, momentum, floor, memory type or choice out of range; more samples than slots.
    """

    started: Tensor
    seen: Tensor

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
        initial_memory: str = "empty",
        update_classes: str = "seen",
        memory_dtype: torch.dtype = torch.float32,
        save_memory: bool = False,
    ) -> None:
        super().__init__(num_classes, num_components, dim, reduction=reduction)
        limits = {
            "samples_per_update": (samples_per_update, 1, math.inf),
            "momentum_mean": (momentum_mean, 0, 1),
            "momentum_scale": (momentum_scale, 0, 1),
            "variance_floor (MODEL.GMM.VARIANCE_FLOOR)": (variance_floor, LEAST_VARIANCE, math.inf),
        }
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise ValueError(f"{name}: expected a number in [{least}, {most}], found {value}")
        if initial_memory not in ("empty", "random"):
            raise ValueError(f'initial_memory: expected "empty" or "random", found {initial_memory!r}')
        if update_classes not in ("seen", "batch"):
            raise ValueError(f'update_classes: expected "seen" or "batch", found {update_classes!r}')
        if samples_per_update > memory_size:
            raise ValueError(
                f"samples_per_update ({samples_per_update}) exceeds memory_size ({memory_size}): one batch "
                "would overwrite itself; lower MODEL.GMM.SAMPLES_PER_UPDATE or raise MODEL.GMM.MEMORY_SIZE"
            )
        self.samples_per_update = samples_per_update
        self.momentum_mean = momentum_mean
        self.momentum_scale = momentum_scale
        self.variance_floor = variance_floor
        self.fill_slots = fill_slots
        self.update_classes = update_classes

        # Classes whose components may take features, as they need not wait for a warm start.
        self.register_buffer("started", torch.full((num_classes,), warm_start_features == 0))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.memory = FeatureMemory(
            num_classes * num_components, memory_size, dim, dtype=memory_dtype, save_ring=save_memory
        )
        if initial_memory == "random":
            draws = (F.normalize(torch.randn(memory_size, dim), dim=1) for _ in self.memory.count)
            self.memory.fill(draws, self.memory.pointer)
        self.warm_start = None
        if warm_start_features:
            self.warm_start = WarmStartBuffer(num_classes, warm_start_features, dim)
        self._waiting = num_classes if warm_start_features else 0
        self.em_attached = False  # whether a hook (EMHook) will commit what is recorded
        self._recorded: list[tuple[Tensor, Tensor, Tensor]] = []
        self._places = Replayed(self._place, self.buffers)
        self.register_load_state_dict_post_hook(GaussianMixtureBank._after_loading)

    @classmethod
    def from_reference_state(
        cls, means: Tensor, diagonal: Tensor, queue: Tensor, queue_ptr: Tensor, **options: Any
    ) -> GaussianMixtureBank:
        """A bank in the state that the public GMMSeg code keeps, its memory full.

        Args:
            means: (C, M, D). diagonal: (C, M, D) standard deviations.
            queue: (C * M, D, K) stored features, class-major. queue_ptr: (C * M,) next slot to overwrite.
            options: keyword arguments of the constructor; sizes come from the tensors.

        Raises:
            ValueError: shapes that do not fit each other, or a ``memory_size`` that is not K.
        """
        classes, components, dim = means.shape
        rings, slots = classes * components, queue.shape[-1]
        for name, tensor, shape in (
            ("diagonal", diagonal, means.shape),
            ("queue", queue, (rings, dim, slots)),
            ("queue_ptr", queue_ptr, (rings,)),
        ):
            if tensor.shape != shape:
                raise ValueError(f"{name}: expected shape {tuple(shape)}, found {tuple(tensor.shape)}")
        if options.setdefault("memory_size", slots) != slots:
            raise ValueError(f"memory_size: the queue has {slots} slots, found {options['memory_size']}")
        bank = cls(classes, components, dim, **options)
        bank.means.copy_(means)
        bank.scales.copy_(diagonal)
        bank.memory.fill(queue.transpose(1, 2), queue_ptr.long())
        bank.fitted.fill_(True)
        bank.started.fill_(True)
        bank._count_waiting()
        return bank

    def _after_loading(self, _incompatible: object) -> None:
        if not bool(self.means.isfinite().all() & (self.scales.isfinite() & (self.scales > 0)).all()):
            raise ValueError(
                "the checkpoint's mixtures have means that are not finite, or standard deviations that are "
                "not positive and finite; take an earlier checkpoint (MODEL.WEIGHTS)"
            )
        # Without a warm start no class waits, also where that of the checkpoint did.
        self.started |= self.warm_start is None
        self._count_waiting()
        self._recorded.clear()

    def _count_waiting(self) -> None:
        """After whatever sets ``started``, but for a start itself."""
        self._waiting = int((~self.started).sum())
        if self.warm_start is not None:
            self.warm_start.forget_answer()

    @torch.no_grad()
    def record(self, features: Tensor, labels: Tensor, assignment: Tensor, correct: Tensor) -> None:
        """Remember the pixels of a batch for the next ``commit``; neither mixture nor memory changes.

        Args:
            features: (N, D) floating point; a pixel with NaN or infinity in it is ignored.
            labels: (N,) integer classes; anything outside ``0 .. C-1`` is ignored.
            assignment: (N,) integer component of each pixel inside its class; what lies outside ``0 .. M-1``
                does not enter the memory.
            correct: (N,) bool, pixels whose predicted class is their label; no others enter the memory.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features: expected shape (N, {self.dim}), found {tuple(features.shape)}")
        for name, tensor in {"labels": labels, "assignment": assignment, "correct": correct}.items():
            if tensor.shape != features.shape[:1]:
                raise ValueError(f"{name}: expected shape ({len(features)},), found {tuple(tensor.shape)}")
        features, labels, assignment = features.detach().float(), labels.long(), assignment.long()
        # A sum is finite where all its terms are; looking at each of them takes six times as long.
        labels, component = self._places(features.sum(dim=1), labels, assignment, correct.bool())
        self._recorded.append((features, labels, component))

    def _place(
        self, total: Tensor, labels: Tensor, assignment: Tensor, entering: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums of features, and what :meth:`record` takes, (N,) each -> labels, C for what is ignored, and
        the component whose memory a pixel enters, -1 for none."""
        known = (labels >= 0) & (labels < self.num_classes) & total.isfinite()
        labels = torch.where(known, labels, self.num_classes)
        storable = known & (assignment >= 0) & (assignment < self.num_components)
        component = torch.where(storable, labels * self.num_components + assignment, 0)
        if self.fill_slots:
            entering = entering | (self.memory.count[component] < self.fill_slots)
        entering = entering & storable & F.pad(self.started, (0, 1))[labels]
        return labels, torch.where(entering, component, -1)

    def discard_recorded(self) -> None:
        """Forget what was recorded since the last ``commit``: the batches of a step that is left out."""
        self._recorded.clear()

    @torch.no_grad()
    def commit(self, least: int | None = None) -> None:
        """Move recorded batches into the memory, oldest first; start the classes that are ready for it.

        Collective over the ranks, which must have recorded as many batches (one per forward pass) each.
        ``least``: features that make a class ready, in place of ``warm_start_features``.
        """
        for features, labels, component in self._recorded:
            present = torch.zeros(self.num_classes + 1, dtype=torch.int32, device=labels.device)
            present.index_fill_(0, labels, 1)
            present = collectives.sum_over_ranks(present)[:-1] > 0
            self.seen.copy_(present if self.update_classes == "batch" else self.seen | present)
            self.memory.add_batch(features, component, self.samples_per_update)
            if self.warm_start is not None and self._waiting:
                waiting = torch.where(F.pad(self.started, (0, 1))[labels], -1, labels)
                self.warm_start.add_batch(features, waiting, self.samples_per_update * self.num_components)
        self._recorded.clear()
        if self.warm_start is not None and self._waiting:
            classes = self.warm_start.due(~self.started, least)
            if len(classes):
                self.initialise(classes, *self.warm_start.take(classes))
                self._waiting -= len(classes)

    @torch.no_grad()
    def update(
        self, classes: Tensor | list[int] | None = None, *, momentum_mean: float | None = None
    ) -> None:
        """The EM step: commit what was recorded, then move components towards their memories' content.

        Args:
            classes: indices, or a (C,) bool mask, of the classes to update, the same on every rank; default:
                as ``update_classes`` of the bank says. A component whose memory is empty keeps its state.
            momentum_mean: for this step, not the bank's own.
        """
        self.commit()
        chosen = self.seen.clone()
        if classes is not None:
            selected = torch.as_tensor(classes, device=chosen.device)
            chosen.fill_(False)[selected if selected.dtype == torch.bool else selected.long()] = True
        if self.update_classes == "seen":
            self.seen.zero_()
        count, direction, variance = self.memory.moments(self.num_classes)
        keep = self.momentum_mean if momentum_mean is None else momentum_mean
        current, still = self.unit_means, self.momentum_scale
        means = keep * current.double() + (1 - keep) * direction
        scales = still * self.scales.double() + (1 - still) * (variance + self.variance_floor).sqrt()
        # A running mean in single precision may end a rounding below the floor.
        scales = scales.float().clamp(min=self.variance_floor**0.5)
        moved = chosen[:, None] & (count > 0)
        self.means.copy_(torch.where(moved[..., None], means.float(), current))
        self.scales.copy_(torch.where(moved[..., None], scales, self.scales))
        self.fitted |= moved

    @torch.no_grad()
    def initialise(self, classes: Tensor, features: Tensor, valid: Tensor) -> None:
        """Start components from features by spherical k-means, and put these into their memories; collective.

        Args:
            classes: (R,) int64.
            features: (R, n, D) floating point, those of each class, the same on every rank; n >= 1.
            valid: (R, n) bool, the features that there are, in front.
        """
        unit = F.normalize(features.float(), dim=-1)
        centres, assignment = spherical_kmeans(unit, self.num_components, valid=valid)
        collectives.broadcast_from_first(centres)
        place = torch.arange(len(classes), device=classes.device)[:, None] * self.num_components + assignment
        rings = classes[:, None] * self.num_components + torch.arange(self.num_components, device=unit.device)
        self.memory.replace(rings.flatten(), unit.flatten(0, 1), torch.where(valid, place, -1).flatten())
        count, direction, variance = (of[classes] for of in self.memory.moments(self.num_classes))
        self.means[classes] = torch.where((count > 0)[..., None], direction.float(), centres)
        self.scales[classes] = (variance + self.variance_floor).sqrt().float()
        self.fitted[classes] = True
        self.started[classes] = True

    @torch.no_grad()
    def broadcast(self) -> None:
        """Give every rank the state of rank 0; call it once the model is built, wrapped and loaded.

        Detectron2's trainer neither seeds the ranks alike nor broadcasts buffers. What others had stored is
        lost, what waited there for a warm start is collected again.
        """
        for name, buffer in self.named_buffers():
            if not name.startswith(("memory.", "warm_start.")):
                collectives.broadcast_from_first(buffer)
        self._kept.clear()  # written past the buffers' version numbers
        self.memory.broadcast()
        if self.warm_start is not None and collectives.rank() > 0:
            self.warm_start.count.zero_()
        self._count_waiting()
