"""Scores of mask models on their semantic map: what every known class rejects, and what none claims."""

from __future__ import annotations

from torch import Tensor

from .outputs import MASKS, PixelOutputs, semantic_map
from .registry import register_score


def rba_score(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """``-sum_c tanh(sum_i p_i(c) m_i)`` over the known classes.

    Args:
        mask_logits: (Q, H, W) float.
        class_logits: (Q, C + 1) float, "no object" last.

    Returns:
        (H, W) float32 in (-C, 0], higher = more anomalous.

    Raises:
        ValueError: shapes that do not belong together.
    """
    return -semantic_map(mask_logits, class_logits).tanh().sum(dim=0)


@register_score("rba", needs=MASKS)
def rba(outputs: PixelOutputs) -> Tensor:
    """:func:`rba_score`."""
    assert outputs.masks is not None
    return rba_score(outputs.masks.mask_logits, outputs.masks.class_logits)


def mask_void_score(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """``1 - max_c sum_i p_i(c) m_i`` over the known classes: the score of Mask2Anomaly (Rai et al., ICCV
    2023) without its refinement and mirrored view.

    Args:
        mask_logits: (Q, H, W) float.
        class_logits: (Q, C + 1) float, "no object" last.

    Returns:
        (H, W) float32, at most 1, higher = more anomalous; below 0 where several queries claim a pixel for
        the same class.

    Raises:
        ValueError: shapes that do not belong together.
    """
    return 1 - semantic_map(mask_logits, class_logits).amax(dim=0)


@register_score("mask_void", needs=MASKS)
def mask_void(outputs: PixelOutputs) -> Tensor:
    """:func:`mask_void_score`."""
    assert outputs.masks is not None
    return mask_void_score(outputs.masks.mask_logits, outputs.masks.class_logits)
