"""From maps at the resolution of the features back to the pixels of the output.

A look at an image (at some scale, mirrored or not) goes through the network in one or more windows, and each
window leaves a tile: maps at the features' resolution. A tile is enlarged to its padded window and loses the
padding; tiles that overlap are averaged; the look is resized to the output and mirrored back; looks are
averaged. All of it is linear and needs few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from .interpolation import interpolate_rows, source_rows
from .sliding_window import Window

# Values of one map set in a strip of rows: 16 MB in float32, which a processor's cache still serves well.
STRIP_VALUES = 1 << 22


class Look(NamedTuple):
    """Geometry of one look, as (height, width): the scaled image, its windows, and what each is padded to."""

    size: tuple[int, int]
    windows: Sequence[Window]
    padded: tuple[int, int]
    mirrored: bool


class Restoration:
    """Restores and averages the tiles of one image.

    Args:
        looks: geometry of the looks. output_size: height and width of the result.
    """

    def __init__(self, looks: Sequence[Look], output_size: tuple[int, int]) -> None:
        self.looks = list(looks)
        self.output_size = output_size

    def strips(self, channels: int) -> Iterator[range]:
        """Output rows in strips that keep ``channels`` maps within a fixed size."""
        height, width = self.output_size
        step = max(1, STRIP_VALUES // (channels * width))
        for start in range(0, height, step):
            yield range(start, min(start + step, height))

    def rows(self, tiles: Sequence[Tensor], rows: range) -> Tensor:
        """Some rows of the result.

        Args:
            tiles: (K, h, w) floating point each, one for every window of every look, in their order.
            rows: consecutive output rows.

        Returns:
            (K, len(rows), width), the mean over the looks.
        """
        remaining = iter(tiles)
        total: Tensor | None = None
        for look in self.looks:
            part = self._look_rows(look, [next(remaining) for _ in look.windows], rows)
            total = part if total is None else total + part
        assert total is not None
        return total / len(self.looks) if len(self.looks) > 1 else total

    def _look_rows(self, look: Look, tiles: list[Tensor], rows: range) -> Tensor:
        needed = source_rows(rows, look.size[0], self.output_size[0])
        part = _merged_rows(look, tiles, needed)
        # Mirrored back before it is resized: as the image was resized before it was mirrored.
        part = part.flip(-1) if look.mirrored else part
        return interpolate_rows(part, self.output_size, rows, source_height=look.size[0], first=needed.start)


def _merged_rows(look: Look, tiles: list[Tensor], rows: range) -> Tensor:
    """Rows of a look at its own scale: the mean of the windows that see each pixel."""
    if len(tiles) == 1:
        return interpolate_rows(tiles[0], look.padded, rows)[..., : look.size[1]]
    total = tiles[0].new_zeros(len(tiles[0]), len(rows), look.size[1])
    count = total.new_zeros(total.shape[1:])
    for tile, window in zip(tiles, look.windows, strict=True):
        inside = range(max(rows.start, window.top), min(rows.stop, window.top + window.height))
        if not inside:
            continue
        part = interpolate_rows(tile, look.padded, range(inside.start - window.top, inside.stop - window.top))
        down = slice(inside.start - rows.start, inside.stop - rows.start)
        across = slice(window.left, window.left + window.width)
        total[:, down, across] += part[..., : window.width]
        count[down, across] += 1
    return total / count
