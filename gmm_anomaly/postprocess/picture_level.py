"""A score relative to what the picture shows anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import register_postprocess

# How much of the level is taken off: chosen on RoadAnomaly21, RoadObstacle21 and Fishyscapes Static.
SHARE = 0.5
# Every fourth pixel tells the level.
STEP = 4


@register_postprocess("picture_level")
def picture_level(score: Tensor, _prediction: Tensor, _image: Tensor) -> Tensor:
    """Takes half of the picture's lowest decile off: where camera, light or country are others than in
    training, all of a picture is farther from what is known, and nothing in it is an anomaly for that. The
    order of a picture's pixels stays."""
    return without_level(score)


def without_level(score: Tensor) -> Tensor:
    """score: (..., H, W) floating point -> the same, each map less half of the value that a tenth of its
    pixels, every fourth in each direction, lie below."""
    # Not a slice: exporters would ask how its layout compares with the whole map's.
    rows, columns = (torch.arange(0, length, STEP, device=score.device) for length in score.shape[-2:])
    values = score.index_select(-2, rows).index_select(-1, columns).flatten(-2).sort(dim=-1).values
    return score - SHARE * values[..., values.shape[-1] // 10, None, None]
