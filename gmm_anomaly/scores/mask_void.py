"""What of a pixel no known class claims, on the outputs of a mask model."""

from __future__ import annotations

from torch import Tensor

from .mask_outputs import semantic_evidence
from .outputs import MASKS, PixelOutputs
from .registry import register_score


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
    return 1 - semantic_evidence(mask_logits, class_logits).amax(dim=0)


@register_score("mask_void", needs=MASKS)
def mask_void(outputs: PixelOutputs) -> Tensor:
    """:func:`mask_void_score`."""
    assert outputs.masks is not None
    return mask_void_score(outputs.masks.mask_logits, outputs.masks.class_logits)
