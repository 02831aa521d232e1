"""The mixtures of all classes as a module, with the table of their densities kept between EM steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .density import (
    CACHED_DENSITIES,
    EXCLUDED,
    PIXELS_PER_CHUNK,
    DensityTable,
    check_shapes,
    class_log_density,
    class_log_density_of,
    full_precision,
    fused_class_log_density_of,
    log_prob_of,
)

T = TypeVar("T")


class UnfittedMixtureError(RuntimeError):
    """A mixture that no EM step has touched was asked for densities outside training."""


class KeptUntilChanged:
    """Keeps what was made of tensors until one of them is written in place, loaded or moved."""

    def __init__(self) -> None:
        self._kept: dict[object, tuple[list[tuple[Tensor, int]], Any]] = {}

    def __call__(self, made_of: Sequence[Tensor], make: Callable[[], T], key: object = None) -> T:
        """What ``make()`` gives for these tensors; ``key`` tells several things apart."""
        if any(tensor.is_inference() for tensor in made_of):  # their changes are not counted
            return make()
        now = [(tensor, tensor._version) for tensor in made_of]
        before, value = self._kept.get(key, ((), None))
        if len(before) != len(now) or any(
            old is not new or version != counted
            for (old, version), (new, counted) in zip(before, now, strict=True)
        ):
            # What is made under inference mode could not be trained with later.
            with torch.inference_mode(False):
                value = make()
            self._kept[key] = now, value
        return cast(T, value)

    def clear(self) -> None:
        """For changes that tensors do not count."""
        self._kept.clear()


class GaussianMixtures(nn.Module):
    """Mixtures of M diagonal Gaussians with uniform weights, one for each of C classes.

    Args:
        num_classes: C.
        num_components: M components per class.
        dim: D, dimensions of a feature.
        reduction: how components make a class density, see :func:`class_log_density`.

    Attributes:
        means: (C, M, D) float32. They are normalised to unit length whenever they are used, never in place.
            At first random directions, as in the released GMMSeg code.
        scales: (C, M, D) float32 standard deviations, at first 1.
        fitted: (C, M) bool, components that EM has set.

    Raises:
        ValueError: sizes that are not positive, unknown reduction.
    """

    means: Tensor
    scales: Tensor
    fitted: Tensor

    def __init__(self, num_classes: int, num_components: int, dim: int, *, reduction: str = "max") -> None:
        super().__init__()
        for name, size in (("num_classes", num_classes), ("num_components", num_components), ("dim", dim)):
            if size < 1:
                raise ValueError(f"{name}: expected a positive number, found {size}")
        class_log_density(torch.zeros(1, 1, 1), reduction)
        self.num_classes = num_classes
        self.num_components = num_components
        self.dim = dim
        self.reduction = reduction
        means = torch.empty(num_classes, num_components, dim)
        nn.init.trunc_normal_(means, std=0.02)
        self.register_buffer("means", F.normalize(means, dim=-1))
        self.register_buffer("scales", torch.ones(num_classes, num_components, dim))
        self.register_buffer("fitted", torch.zeros(num_classes, num_components, dtype=torch.bool))
        self._kept = KeptUntilChanged()

    def table(self, dtype: torch.dtype = torch.float32) -> DensityTable:
        """The table of the densities, built anew only after an EM step, a load or a move."""
        made_of = (self.means, self.scales)
        return self._kept(made_of, lambda: DensityTable(self.unit_means, self.scales, dtype), dtype)

    @property
    def fitted_components(self) -> list[list[bool]]:
        """``fitted`` on the host: asked once after an EM step, so that no inference waits for a GPU."""
        return self._kept((self.fitted,), self.fitted.tolist)

    @property
    def is_fitted(self) -> bool:
        """Whether an EM step has set any component (kept in the state dict)."""
        return any(map(any, self.fitted_components))

    @property
    def known_classes(self) -> Tensor:
        """(C,) bool: classes with a component that an EM step has set."""
        return self.fitted.any(dim=1)

    @property
    def unit_means(self) -> Tensor:
        """(C, M, D) means as they are used: of unit length."""
        return F.normalize(self.means, dim=-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Component log-densities, in nats.

        Args:
            x: (N, D) floating point features.

        Returns:
            (N, C, M) float32 (float64 for float64 features), differentiable with respect to ``x``.

        Raises:
            UnfittedMixtureError: outside training, when nothing has been fitted.
        """
        self._require_fitted()
        check_shapes(x, self.means, self.scales)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return log_prob_of(x.to(dtype), self.table(dtype))

    def class_log_density(self, x: Tensor, chunk_size: int | None = None) -> Tensor:
        """Class log-densities, without the (N, C, M) component densities of all pixels at once.

        Outside training, components that no EM step has ever set take no part; a class without any other has
        the density :data:`EXCLUDED`, so that it is neither predicted nor part of any score.

        Args:
            x: (N, D) floating point features.
            chunk_size: pixels at a time; None: as many as the device computes fastest together.

        Returns:
            (N, C) float32 (float64 for float64 features), differentiable with respect to ``x``.

        Raises:
            UnfittedMixtureError: outside training, when nothing has been fitted.
            ValueError: features of another shape.
        """
        self._require_fitted()
        check_shapes(x, self.means, self.scales)
        if chunk_size is None:
            cached = max(CACHED_DENSITIES // (self.num_classes * self.num_components), 256)
            chunk_size = cached if x.device.type == "cpu" else PIXELS_PER_CHUNK
        with full_precision(x.device):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            table = self.table(dtype)
            partial = not self.training and not all(map(all, self.fitted_components))
            constant = table.constant
            if partial:
                constant = constant.masked_fill(~self.fitted.flatten(), -torch.inf)
            if x.is_cuda and dtype == torch.float32 and not (torch.is_grad_enabled() and x.requires_grad):
                density = fused_class_log_density_of(x.to(dtype), constant, table, self.reduction)
            else:
                terms = (constant, table.matrix, self.num_components, self.reduction)
                density = torch.cat([class_log_density_of(p.to(dtype), *terms) for p in x.split(chunk_size)])
        return density.masked_fill(~self.known_classes, EXCLUDED) if partial else density

    def _require_fitted(self) -> None:
        if not self.training and not self.is_fitted:
            raise UnfittedMixtureError(
                "the Gaussian mixtures have never been fitted, so they have no densities: load a checkpoint "
                "of a trained gmm model (MODEL.WEIGHTS), or train first"
            )

    @torch.no_grad()
    def sample(
        self,
        classes: Tensor | list[int],
        n: int,
        *,
        noise_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw unit vectors: a uniform component, ``mean + noise_scale * scale * eps``, normalised.

        Args:
            classes: (R,) class indices.
            n: draws per class.
            noise_scale: 1 draws from the mixture itself; smaller values stay closer to the means (at the
                variance floor a full draw has a cosine of only about 0.76 with its mean).
            generator: random state, on the bank's device.

        Returns:
            (R, n, D) float32.
        """
        self._require_fitted()
        device = self.means.device
        index = torch.as_tensor(classes, device=device).long()
        component = torch.randint(self.num_components, (len(index), n), generator=generator, device=device)
        mean = self.unit_means[index[:, None], component]
        noise = torch.randn(mean.shape, generator=generator, device=device)
        return F.normalize(mean + noise_scale * self.scales[index[:, None], component] * noise, dim=-1)
