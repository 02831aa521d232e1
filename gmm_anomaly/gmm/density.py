"""Class densities of diagonal Gaussian mixtures, without the (N, C, M, D) broadcast.

With precision ``lam = 1 / scale**2``, ``log N(x) = const + x . (mean * lam) - x**2 . (lam / 2)``: one matrix
product of [x, x**2] with a (2D, C*M) matrix. GMMSeg (Liang et al., NeurIPS 2022), Eq. 2, evaluates the same
density.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

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


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, float32 products on this device are float32, whatever autocast and ``torch.backends`` say of
    TF32: its ten bits move a density by 0.03 nats."""
    with torch.autocast(device_type=device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.allow_tf32
        products.allow_tf32 = convolutions.allow_tf32 = False
        try:
            yield
        finally:
            products.allow_tf32, convolutions.allow_tf32 = before


class DensityTable:
    """The matrix of a mixture, ready to be multiplied with pixels.

    Args:
        means: (C, M, D) floating point.
        scales: (C, M, D) standard deviations, positive.
        dtype: type of the matrix and of every result, float32 or float64.

    Attributes:
        constant: (C * M,). matrix: (2D, C * M), for x and its squares.
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
        self.matrix = torch.cat([mean * precision, -0.5 * precision], dim=1).t().to(dtype)

    @cached_property
    def parts(self) -> Tensor:
        """What the fused kernel multiplies with; of a float32 table."""
        from .fused_density import split_by_component

        return split_by_component(self.matrix, self.num_components)

    def log_prob(self, x: Tensor) -> Tensor:
        """x: (N, D) of the table's dtype -> (N, C, M) log-densities; differentiable with respect to x."""
        out = torch.addmm(self.constant, torch.cat([x, x.square()], dim=1), self.matrix)
        return out.view(-1, self.num_classes, self.num_components)


def class_log_density_of(
    x: Tensor, constant: Tensor, matrix: Tensor, components: int, reduction: str
) -> Tensor:
    """Class log-densities from a :class:`DensityTable`, or from some of its classes.

    Args:
        x: (N, D). constant: (C * M,). matrix: (2D, C * M). components: M.
        reduction: see :func:`class_log_density`.

    Returns:
        (N, C), a view of (C, N): with the pixels innermost, the reduction over few components runs along
        whole rows of them.
    """
    out = torch.addmm(constant[:, None], matrix.t(), torch.cat([x, x.square()], dim=1).t())
    return _reduce(out.view(len(constant) // components, components, -1), reduction, dim=1).t()


def fused_class_log_density_of(x: Tensor, constant: Tensor, table: DensityTable, reduction: str) -> Tensor:
    """:func:`class_log_density_of` in one kernel of a GPU, without gradients; with a warning in several where
    that cannot be (no Triton, an older GPU)."""
    global _fuses
    if _fuses:
        try:
            from .fused_density import fused_class_density  # takes a second

            density = fused_class_density(x, constant, table.parts, sums=reduction == "logsumexp")
            return density - math.log(table.num_components) if reduction == "logsumexp" else density
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton's compiler has many
            _fuses = False
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            logger.warning("the class densities take twice as long, in several kernels: %s", reason)
    return class_log_density_of(x, constant, table.matrix, table.num_components, reduction)


_fuses = True


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
    return log_prob_of(x.to(dtype), DensityTable(means, scales, dtype), chunk_size)


def log_prob_of(x: Tensor, table: DensityTable, chunk_size: int = PIXELS_PER_CHUNK) -> Tensor:
    with full_precision(x.device):
        if len(x) <= chunk_size:
            return table.log_prob(x)
        return torch.cat([table.log_prob(part) for part in x.split(chunk_size)])


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
