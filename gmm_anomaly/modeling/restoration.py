"""From maps at the resolution of the features back to the pixels of the output, and there to scores.

A look at an image (at some scale, mirrored or not) goes through the network in one or more windows, and each
window leaves a tile: maps at the features' resolution. A tile is enlarged to its padded window and loses the
padding; tiles that overlap are averaged; the look is resized to the output and mirrored back; looks are
averaged. All of it is linear, needs few rows at a time and is done in strips of rows: densities and temporary
maps of all classes of a large image never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.scores import PixelOutputs

from .inference import FEATURES, Look

# Values of one map set in a strip of rows: 16 MB in float32, which a processor's cache still serves well. For
# a GPU as many as its memory has room for: small strips leave it idle.
STRIP_VALUES, GPU_STRIP_VALUES = 1 << 22, 1 << 27
# Maps that may have another resolution than the logits.
COARSE = ("feature_distance", "outlier_ratio")


def restore(
    looks: Sequence[Look],
    output_size: tuple[int, int],
    score_on: str,
    score: Callable[[PixelOutputs], Tensor],
) -> tuple[Tensor, Tensor]:
    """Logits and scores of one image at the output's size.

    Args:
        looks: at the image, from :meth:`InferenceMode.see`.
        output_size: height and width.
        score_on: see :class:`InferenceMode`.
        score: from outputs (logits (C, h, w), ...), all maps at one resolution, to (S, h, w).

    Returns:
        (C, height, width) logits; (S, height, width) scores.
    """
    first: PixelOutputs = looks[0].tiles[0]
    scored = [
        look._replace(tiles=[score(aligned(tile)) for tile in look.tiles])
        for look in (looks if score_on == FEATURES else ())
    ]
    sem_seg = first.logits.new_empty(len(first.logits), *output_size)
    scores = []
    most = GPU_STRIP_VALUES if sem_seg.is_cuda else STRIP_VALUES
    for rows in strips(len(first.logits), output_size, most):

        def restored(field: str, rows: range = rows) -> Tensor | None:
            if getattr(first, field) is None:
                return None
            return _rows(looks, lambda tile: getattr(tile, field), rows, output_size)

        sem_seg[:, rows.start : rows.stop] = logits = restored("logits")
        if scored:
            scores.append(_rows(scored, lambda maps: maps, rows, output_size, direct=True))
            continue
        fields = {name: restored(name) for name in ("log_density", *COARSE)}
        scores.append(score(replace(first, logits=logits, **fields)))
    return sem_seg, torch.cat(scores, dim=1)


def aligned(outputs: PixelOutputs) -> PixelOutputs:
    """With the maps of :data:`COARSE` at the resolution of the logits: a tile's may have another one."""
    size, resized = outputs.logits.shape[-2:], {}
    for name in COARSE:
        found = getattr(outputs, name)
        if found is not None and found.shape[-2:] != size:
            found = F.interpolate(found[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        resized[name] = found
    return replace(outputs, **resized)


def strips(channels: int, size: tuple[int, int], values: int) -> Iterator[range]:
    """Rows of a map of this height and width, in strips that keep ``channels`` maps within so many values."""
    height, width = size
    step = max(1, values // (channels * width))
    for start in range(0, height, step):
        yield range(start, min(start + step, height))


def _rows(
    looks: Sequence[Look],
    maps_of: Callable[[Any], Tensor],
    rows: range,
    output_size: tuple[int, int],
    *,
    direct: bool = False,
) -> Tensor:
    """Maps (..., h, w) of every tile -> (..., len(rows), width), the mean over the looks.

    Class evidence goes over the look's own size, as in MMSegmentation. With ``direct``, scores of a look that
    is whole and not padded are enlarged to the output in one step, as in PAnS.
    """
    total: Tensor | None = None
    for look in looks:
        maps = [maps_of(tile) for tile in look.tiles]
        parts = [part.view(-1, *part.shape[-2:]) for part in maps]
        if direct and len(parts) == 1 and look.padded == look.size:
            part = parts[0].flip(-1) if look.mirrored else parts[0]
            part = interpolate_rows(part, output_size, rows)
        else:
            needed = source_rows(rows, look.size[0], output_size[0])
            part = _merged_rows(look, parts, needed)
            # Mirrored back before it is resized: as the image was resized before it was mirrored.
            part = part.flip(-1) if look.mirrored else part
            part = interpolate_rows(part, output_size, rows, source_height=look.size[0], first=needed.start)
        total = part if total is None else total + part
    assert total is not None
    total = total / len(looks) if len(looks) > 1 else total
    return total if maps[0].dim() == 3 else total[0]


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
    elif len(rows) == size[0] and maps.shape[1] == source_height:
        strip = maps
    else:
        below, above, weight = _neighbours(rows, source_height, size[0], maps.device)
        strip = torch.lerp(maps[:, below - first], maps[:, above - first], weight.to(maps.dtype)[:, None])
    if strip.shape[1:] == (len(rows), size[1]):
        return strip
    return F.interpolate(strip[None], size=(len(rows), size[1]), mode="bilinear", align_corners=False)[0]


def _neighbours(
    rows: range, source_height: int, height: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Source rows on both sides of each row, int64, and the share of the second, float32."""
    position = (torch.arange(rows.start, rows.stop, device=device) + 0.5) * (source_height / height) - 0.5
    position.clamp_(min=0)
    below = position.long().clamp_(max=source_height - 1)
    return below, (below + 1).clamp(max=source_height - 1), position - below
