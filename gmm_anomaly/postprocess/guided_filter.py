"""Edge-aware enlargement: a score map of coarse features takes its outlines from the photo."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .registry import register_postprocess

# A box reaches over this share of the image's width to each side, whatever the image's size. This and the
# next two were chosen on RoadAnomaly21, RoadObstacle21 and Fishyscapes Static.
WIDTHS_PER_RADIUS = 16
# Variance of colours (0 to 1), and of twice their squares, under which a box counts as flat.
EPSILON = 1e-5
# The filter works at an eighth of the photo's size: finer, what single pixels look like is noise.
REDUCTION = 8


@register_postprocess("guided_filter")
def guided_filter(score: Tensor, _prediction: Tensor, image: Tensor) -> Tensor:
    """Guided filter with the photo as guide (He, Sun and Tang, TPAMI 2013): its colours and their squares,
    so its texture too, as means over 8 x 8 pixels. Features with a stride of 32 know no outlines."""
    # Half precision has too few digits for variances.
    with torch.autocast(score.device.type, enabled=False):
        return filter_by_guide(score, image.float() / 255)


def filter_by_guide(
    score: Tensor,
    guide: Tensor,
    *,
    radius: int | None = None,
    epsilon: float = EPSILON,
    reduction: int = REDUCTION,
) -> Tensor:
    """The colour guided filter: in each box the score as a linear function of the colours and their squares,
    by ridge regression; a pixel's coefficients are the means over the boxes that hold it.

    Args:
        score: (..., H, W) floating point.
        guide: (..., 3, h, w) floating point, 0 to 1.
        radius: of the boxes, in cells of ``reduction`` x ``reduction`` pixels of the guide; None: a 16th of
            its width, rounded up. Boxes end at the border.
        epsilon: added to the variances of the colours and of twice their squares around 0.5.
        reduction: a cell has the means of its colours and squares, and one score; 1: the filter itself.

    Returns:
        (..., H, W), resized from the cells.
    """
    # Centred: differences of large means would lose digits in float32, and a flat map stays exactly flat.
    offset = score.mean(dim=(-2, -1), keepdim=True)
    channels = _cell_means(_channels(guide - 0.5), reduction)
    size, count = channels.shape[-2:], channels.shape[-3]
    maps = _resized((score - offset)[..., None, :, :], size)
    rows, columns = (_box_means(length, radius, size[1], score) for length in size)

    def box_mean(maps: Tensor) -> Tensor:
        # Twice the same product: exporters ask less of its layout.
        return F.linear(F.linear(maps, columns).mT, rows).mT.contiguous()

    # All in one: exporters cannot tell the layout of a single map.
    mean, mean_score = box_mean(torch.cat([channels, maps], dim=-3)).split([count, 1], dim=-3)
    covariance = box_mean(channels * maps) - mean * mean_score
    pairs = [(row, column) for row in range(count) for column in range(row, count)]
    first, second = (torch.tensor(index, device=score.device) for index in zip(*pairs, strict=True))
    products = channels.index_select(-3, first) * channels.index_select(-3, second)
    spread = box_mean(products) - mean.index_select(-3, first) * mean.index_select(-3, second)
    slope = _solve(dict(zip(pairs, spread.unbind(-3), strict=True)), list(covariance.unbind(-3)), epsilon)
    constant = mean_score - (slope * mean).sum(dim=-3, keepdim=True)
    slope, constant = box_mean(torch.cat([slope, constant], dim=-3)).split([count, 1], dim=-3)
    filtered = (channels * slope).sum(dim=-3, keepdim=True) + constant
    return _resized(filtered, score.shape[-2:])[..., 0, :, :] + offset


def _cell_means(maps: Tensor, side: int) -> Tensor:
    """maps: (..., K, H, W) -> (..., K, h, w), over cells of ``side`` x ``side`` pixels, smaller ones at the
    border."""
    height, width = maps.shape[-2:]
    # Not avg_pool2d's ceil_mode: exporters see in this form how many cells there are.
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    padded = F.pad(maps, (0, columns * side - width, 0, rows * side - height))
    means = F.avg_pool2d(padded.reshape(-1, *padded.shape[-3:]), side)
    down, across = (
        (length - side * torch.arange(count, device=maps.device)).clamp(max=side) / side
        for length, count in ((height, rows), (width, columns))
    )
    means = means / (down[:, None] * across).to(maps.dtype)
    return means.reshape(*maps.shape[:-2], rows, columns)


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """maps: (..., K, H, W) -> (..., K, *size)."""
    flat = maps.reshape(-1, *maps.shape[-3:])
    flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return flat.reshape(*maps.shape[:-2], *size)


def _box_means(length: int, radius: int | None, width: int, like: Tensor) -> Tensor:
    """(length, length): the share of each position in the mean over the box around each. As a product with
    it the mean needs no sums over the whole map, and exporters have it for sizes that are not known."""
    if radius is None:
        radius = (width + WIDTHS_PER_RADIUS - 1) // WIDTHS_PER_RADIUS
    position = torch.arange(length, device=like.device)
    inside = ((position[:, None] - position).abs() <= radius).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _channels(colours: Tensor) -> Tensor:
    """colours: (..., 3, H, W), centred -> (..., 6, H, W): these and twice their squares: a score linear
    in them tells a black and white thing from grey road."""
    return torch.cat([colours, 2 * colours.square()], dim=-3)


def _solve(spread: dict[tuple[int, int], Tensor], right: list[Tensor], epsilon: float) -> Tensor:
    """x of ``(A + epsilon) x = right`` by elimination, for the symmetric K x K matrix A of every pixel. What
    has no negative eigenvalue needs no pivots.

    Args:
        spread: its entries on and above the diagonal, by row and column, each (..., h, w). right: K of them.

    Returns:
        (..., K, h, w).
    """
    size = len(right)
    for row in range(size):
        spread[row, row] = spread[row, row] + epsilon
        for below in range(row + 1, size):
            factor = spread[row, below] / spread[row, row]
            right[below] = right[below] - factor * right[row]
            for column in range(below, size):
                spread[below, column] = spread[below, column] - factor * spread[row, column]
    for row in reversed(range(size)):
        for column in range(row + 1, size):
            right[row] = right[row] - spread[row, column] * right[column]
        right[row] = right[row] / spread[row, row]
    return torch.stack(right, dim=-3)
