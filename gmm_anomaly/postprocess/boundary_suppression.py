"""Scores on boundaries between predicted classes are replaced by those beside them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .registry import register_postprocess

# As many dilations as iterations, as in the released code of Standardized Max Logits.
WIDTH = 4


@register_postprocess("boundary_suppression")
def boundary_suppression(score: Tensor, prediction: Tensor, _image: Tensor) -> Tensor:
    """Iterative boundary suppression (Standardized Max Logits, Jung et al., ICCV 2021, section 3.3).

    Two classes that meet compete, so scores are high between them although nothing is unknown there. The
    boundary, dilated, is overwritten with averages of the 3x3 neighbours outside it; then a narrower boundary
    is, and so on: values travel inwards. Averages are linear, so a score and its negative behave alike.

    Args:
        score: (H, W) floating point.
        prediction: (H, W) integer classes.

    Returns:
        (H, W); equal to ``score`` outside the widest dilated boundary.
    """
    dilated = [class_boundary(prediction)]
    for _ in range(WIDTH - 1):
        dilated.append(_cross_dilation(dilated[-1].float()).bool())
    for inside in reversed(dilated):
        outside = (~inside).to(score.dtype)
        total = _box_mean(torch.where(inside, 0.0, score))
        count = _box_mean(outside)
        average = total / count.clamp(min=1e-6)
        # Nine ninths may miss one by a rounding error; the smallest count is one ninth.
        score = torch.where(inside & (count > 0.05), average, score)
    return score


def class_boundary(prediction: Tensor) -> Tensor:
    """(H, W) integer -> (H, W) bool: pixels where the largest class in the cross around them is not the
    smallest in the square around them. A straight edge is two pixels wide."""
    classes = prediction.float()
    smallest = -F.max_pool2d(-classes[None, None], 3, stride=1, padding=1)[0, 0]
    return _cross_dilation(classes) != smallest


def _cross_dilation(values: Tensor) -> Tensor:
    """Largest value in the 3x3 cross around each pixel of an (H, W) map."""
    vertical = F.max_pool2d(values[None, None], (3, 1), stride=1, padding=(1, 0))
    horizontal = F.max_pool2d(values[None, None], (1, 3), stride=1, padding=(0, 1))
    return torch.maximum(vertical, horizontal)[0, 0]


def _box_mean(values: Tensor) -> Tensor:
    padded = F.pad(values[None, None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)[0, 0]
