"""Bilinear interpolation of some rows of a map, so that a large map never exists as a whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def source_rows(rows: range, source_height: int, height: int) -> range:
    """Rows of a map of ``source_height`` rows that ``rows`` of its enlargement to ``height`` depend on."""
    if source_height == height:
        return rows
    below, above, _ = _neighbours(rows, source_height, height)
    return range(int(below[0]), int(above[-1]) + 1)


def interpolate_rows(
    maps: Tensor, size: tuple[int, int], rows: range, *, source_height: int | None = None, first: int = 0
) -> Tensor:
    """``F.interpolate(maps, size, mode="bilinear", align_corners=False)``, and of that ``rows`` alone.

    Args:
        maps: (K, h, w) floating point; a whole map, or its rows from ``first`` on.
        size: height and width after interpolation.
        rows: consecutive rows of the result, at least one.
        source_height: rows of the whole map; default: h.
        first: row of the whole map that ``maps`` begins with.

    Returns:
        (K, len(rows), width), equal to the rows of the whole but for rounding.
    """
    source_height = maps.shape[1] if source_height is None else source_height
    if source_height == size[0]:
        strip = maps[:, rows.start - first : rows.stop - first]
    else:
        below, above, weight = _neighbours(rows, source_height, size[0])
        lower, upper = ((index - first).to(maps.device) for index in (below, above))
        strip = torch.lerp(maps[:, lower], maps[:, upper], weight.to(maps)[:, None])
    if strip.shape[2] == size[1]:
        return strip
    return F.interpolate(strip[None], size=(len(rows), size[1]), mode="bilinear", align_corners=False)[0]


def _neighbours(rows: range, source_height: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source rows on both sides of each row, int64, and the share of the second, float32; on the CPU."""
    position = (torch.arange(rows.start, rows.stop) + 0.5) * (source_height / height) - 0.5
    position.clamp_(min=0)
    below = position.long().clamp_(max=source_height - 1)
    return below, (below + 1).clamp(max=source_height - 1), position - below
