"""Class densities of diagonal Gaussian mixtures, without the (N, C, M, D) broadcast.

With precision ``lam = 1 / scale**2``, ``log N(x) = const + x . (mean * lam) - x**2 . (lam / 2)``: two matrix
products against (D, C*M) matrices. GMMSeg (Liang et al., NeurIPS 2022), Eq. 2, evaluates the same density.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS_PER_CHUNK = 32768
# So many component densities (1.6 MB) stay in a processor's cache until they are reduced to classes.
CACHED_DENSITIES = 400_000
# Log-density, and logit, of a class that takes no part. exp of it is 0 in every floating point type, as of
# minus infinity; but interpolation and entropies multiply it with 0, which must not give NaN.
EXCLUDED = -1e30


def check_shapes(x: Tensor, means: Tensor, scales: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"x: expected shape (N, D), found {tuple(x.shape)}; flatten the pixels first")
    if means.dim() != 3 or means.shape != scales.shape:
        raise ValueError(
            "means and scales: expected the same shape (C, M, D), "
            f"found {tuple(means.shape)} and {tuple(scales.shape)}"
        )
    if x.shape[1] != means.shape[2]:
        raise ValueError(f"x has {x.shape[1]} dimensions, means have {means.shape[2]}; both must be D")


class DensityTable:
    """The matrices of a mixture, ready to be multiplied with pixels.

    Args:
        means: (C, M, D) floating point.
        scales: (C, M, D) standard deviations, positive.
        dtype: type of the matrices and of every result, float32 or float64.
    """

    def __init__(self, means: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.num_classes, self.num_components, dim = means.shape
        mean = means.detach().double().reshape(-1, dim)
        scale = scales.detach().double().reshape(-1, dim)
        precision = scale.pow(-2)
        # The constants cancel large terms of the products: rounding them once, from double, keeps float32
        # exact to a few units in the last place.
        constant = (
            -0.5 * dim * math.log(2 * math.pi) - scale.log().sum(1) - 0.5 * (mean.square() * precision).sum(1)
        )
        self.constant = constant.to(dtype)
        self.linear = (mean * precision).t().to(dtype)
        self.quadratic = (-0.5 * precision).t().to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """x: (N, D) of the table's dtype -> (N, C, M) log-densities; differentiable with respect to x."""
        out = torch.addmm(self.constant, x, self.linear)
        add = torch.addmm if out.requires_grad else Tensor.addmm_
        return add(out, x.square(), self.quadratic).view(-1, self.num_classes, self.num_components)


def class_log_density_of(
    x: Tensor, constant: Tensor, linear: Tensor, quadratic: Tensor, components: int, reduction: str
) -> Tensor:
    """Class log-densities from the matrices of a :class:`DensityTable`, or from those of some of its classes.

    Args:
        x: (N, D). constant: (C * M,). linear, quadratic: (D, C * M). components: M.
        reduction: see :func:`class_log_density`.

    Returns:
        (N, C), a view of (C, N): with the pixels innermost, the reduction over few components runs along
        whole rows of them.
    """
    out = torch.addmm(constant[:, None], linear.t(), x.t())
    out = torch.addmm(out, quadratic.t(), x.square().t())
    return _reduce(out.view(len(constant) // components, components, -1), reduction, dim=1).t()


def component_log_prob(
    x: Tensor, means: Tensor, scales: Tensor, *, chunk_size: int = PIXELS_PER_CHUNK
) -> Tensor:
    """Log-density of every pixel under every component, in nats.

    Args:
        x: (N, D) floating point pixel embeddings.
        means: (C, M, D) component means, used as they are (not normalised).
        scales: (C, M, D) standard deviations (not variances), positive.
        chunk_size: pixels per matrix product; bounds the memory beside the result.

    Returns:
        (N, C, M) float32 (float64 if ``x`` is float64), also under autocast. Gradients reach ``x`` only:
        mixtures are fitted by EM, never by the optimiser.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    check_shapes(x, means, scales)
    # Autocast's float16 and bfloat16 too.
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(device_type=x.device.type, enabled=False):
        x = x.to(dtype)
        table = DensityTable(means, scales, dtype)
        if len(x) <= chunk_size:
            return table.log_prob(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return torch.cat([table.log_prob(part) for part in x.split(chunk_size)])
        out = x.new_empty(len(x), table.num_classes, table.num_components)
        for start in range(0, len(x), chunk_size):
            out[start : start + chunk_size] = table.log_prob(x[start : start + chunk_size])
        return out


def own_class_log_prob(log_prob: Tensor, classes: Tensor) -> Tensor:
    """Log-densities under the components of each pixel's own class.

    Args:
        log_prob: (N, C, M). classes: (N,) int64 in ``0 .. C-1``.

    Returns:
        (N, M).
    """
    pixels, num_classes, components = log_prob.shape
    rows = torch.arange(pixels, device=log_prob.device) * num_classes + classes
    # Whole rows: several times faster than gathering their elements.
    return log_prob.reshape(-1, components).index_select(0, rows)


def class_log_density(log_prob: Tensor, reduction: str = "max") -> Tensor:
    """Combine component log-densities into class log-densities.

    Args:
        log_prob: (N, C, M) floating point, from :func:`component_log_prob`.
        reduction: ``"max"`` takes the best component, as the released GMMSeg code does; ``"logsumexp"`` is
            the mixture of the paper, ``log(1/M sum_m N_m)`` with uniform weights.

    Returns:
        (N, C), same dtype.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduce(log_prob, reduction, dim=-1)


def _reduce(log_prob: Tensor, reduction: str, dim: int) -> Tensor:
    if reduction == "max":
        return log_prob.amax(dim=dim)
    if reduction == "logsumexp":
        return log_prob.logsumexp(dim=dim) - math.log(log_prob.shape[dim])
    raise ValueError(f'reduction (MODEL.GMM.REDUCTION): expected "max" or "logsumexp", found {reduction!r}')


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
        with torch.autocast(device_type=x.device.type, enabled=False):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            table = DensityTable(self.unit_means, self.scales, dtype)
            partial = not self.training and not bool(self.fitted.all())
            if partial:
                table.constant.masked_fill_(~self.fitted.flatten(), -torch.inf)
            terms = (table.constant, table.linear, table.quadratic, self.num_components, self.reduction)
            parts = (part.to(dtype) for part in x.split(chunk_size))
            density = torch.cat([class_log_density_of(part, *terms) for part in parts])
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
