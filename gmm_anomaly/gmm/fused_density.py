"""Class densities in one Triton kernel: squares, products and the reduction over components stay on the chip.

Tensor cores multiply numbers of ten bits (TF32). Each factor is the sum of two of them, and of the four
products all but that of the two small parts count: single precision, several times as fast as its own units.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pixels and classes of a block; fewer pixels where features are wider, for what is shared on the chip.
PIXELS, CLASSES = 128, 32


@triton.jit
def _split(x):
    """The next number of ten bits, and what is left."""
    large = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return large, x - large


@triton.jit
def _densities(
    x_pointer, matrix_pointer, constant_pointer, out_pointer, pixels, classes, dim,
    COMPONENTS: tl.constexpr, SUMS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    of_class = tl.program_id(1) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    d = tl.arange(0, BLOCK_DIM)
    is_class = of_class < classes
    there = (d < dim)[:, None] & is_class[None, :]
    x = tl.load(
        x_pointer + pixel[:, None] * dim + d[None, :],
        mask=(pixel < pixels)[:, None] & (d < dim)[None, :],
        other=0.0,
    )
    x_large, x_small = _split(x)
    square_large, square_small = _split(x * x)
    best = tl.full((BLOCK_PIXELS, BLOCK_CLASSES), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_CLASSES), tl.float32)
    size = dim * classes
    place = matrix_pointer + d[:, None] * classes + of_class[None, :]
    for component in range(COMPONENTS):
        for_x = tl.load(place, mask=there, other=0.0)
        for_square = tl.load(place + size, mask=there, other=0.0)
        # The small terms first: their digits are lost beside large ones.
        density = tl.dot(x_small, for_x, input_precision="tf32")
        density = tl.dot(square_small, for_square, density, input_precision="tf32")
        small_for_x = tl.load(place + 2 * size, mask=there, other=0.0)
        density = tl.dot(x_large, small_for_x, density, input_precision="tf32")
        small_for_square = tl.load(place + 3 * size, mask=there, other=0.0)
        density = tl.dot(square_large, small_for_square, density, input_precision="tf32")
        density = tl.dot(x_large, for_x, density, input_precision="tf32")
        density = tl.dot(square_large, for_square, density, input_precision="tf32")
        constant = tl.load(constant_pointer + of_class * COMPONENTS + component, mask=is_class, other=0.0)
        density += constant[None, :]
        place += 4 * size
        larger = tl.maximum(best, density, propagate_nan=tl.PropagateNan.ALL)
        if SUMS:
            # A component that was never fitted has minus infinity, and no share.
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            total = total * tl.exp(best - shift) + tl.exp(density - shift)
        best = larger
    if SUMS:
        best += tl.log(total)
    tl.store(
        out_pointer + of_class[None, :] * pixels + pixel[:, None],
        best,
        mask=(pixel < pixels)[:, None] & is_class[None, :],
    )


def split_by_component(matrix: Tensor, components: int) -> Tensor:
    """(2D, C * M) -> (M, 2, 2D, C): of each component the large and the small parts."""
    by_component = matrix.view(len(matrix), -1, components).permute(2, 0, 1).contiguous()
    large = ((by_component.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.stack([large, by_component - large], dim=1)


def fused_class_density(x: Tensor, constant: Tensor, parts: Tensor, *, sums: bool) -> Tensor:
    """The largest density of each class's components, or the logarithm of the densities' sum.

    Args:
        x: (N, D) float32 on a GPU. constant: (C * M,). parts: of :func:`split_by_component`.
        sums: the second of the two.

    Returns:
        (N, C) float32, a view of (C, N).
    """
    components, _, _, classes = parts.shape
    pixels, dim = x.shape
    out = x.new_empty(classes, pixels)
    block_dim = max(16, triton.next_power_of_2(dim))
    block = max(16, min(PIXELS, 64 * PIXELS // block_dim))
    grid = (triton.cdiv(pixels, block), triton.cdiv(classes, CLASSES))
    _densities[grid](
        x.contiguous(), parts, constant, out, pixels, classes, dim,
        components, sums, block, CLASSES, block_dim, num_warps=8, num_stages=2,
    )  # fmt: skip
    return out.t()
