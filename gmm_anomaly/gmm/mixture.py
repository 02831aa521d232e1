"""Class-conditional mixtures of diagonal Gaussians: state, densities and sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gaussian import (
    DensityTable,
    check_shapes,
    class_log_density,
    component_log_prob,
    compute_dtype,
    pixels_at_a_time,
)

# Log-density, and logit, of a class that takes no part. exp of it is 0 in every floating point type, as of
# minus infinity; but interpolation and entropies multiply it with 0, which must not give NaN.
EXCLUDED = -1e30


class UnfittedMixtureError(RuntimeError):
    """A mixture that no EM step has touched was asked for densities outside training."""


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

    @property
    def is_fitted(self) -> bool:
        """Whether an EM step has set any component (kept in the state dict)."""
        return bool(self.fitted.any())

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
        return component_log_prob(x, self.unit_means, self.scales)

    def class_log_density(self, x: Tensor, chunk_size: int | None = None) -> Tensor:
        """Class log-densities, without the (N, C, M) component densities of all pixels at once.

        Outside training, components that no EM step has ever set take no part; a class without any other has
        the density :data:`EXCLUDED`, so that it is neither predicted nor part of any score.

        Args:
            x: (N, D) floating point features.
            chunk_size: pixels at a time; None: :func:`pixels_at_a_time`.

        Returns:
            (N, C) float32 (float64 for float64 features), differentiable with respect to ``x``.

        Raises:
            UnfittedMixtureError: outside training, when nothing has been fitted.
            ValueError: features of another shape.
        """
        self._require_fitted()
        check_shapes(x, self.means, self.scales)
        chunk_size = chunk_size or pixels_at_a_time(x, self.num_classes * self.num_components)
        with torch.autocast(device_type=x.device.type, enabled=False):
            table = DensityTable(self.unit_means, self.scales, compute_dtype(x))
            partial = not self.training and not bool(self.fitted.all())
            if partial:
                table.constant.masked_fill_(~self.fitted.flatten(), -torch.inf)
            density = torch.cat(
                [
                    table.class_log_density(part.to(table.constant.dtype), self.reduction)
                    for part in x.split(chunk_size)
                ]
            )
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
