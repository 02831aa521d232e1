"""RbA (Nayal et al., ICCV 2023): an anomaly is what every known class rejects."""

from __future__ import annotations

from torch import Tensor

from .mask_outputs import semantic_evidence
from .outputs import MASKS, PixelOutputs
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
    return -semantic_evidence(mask_logits, class_logits).tanh().sum(dim=0)


@register_score("rba", needs=MASKS)
def rba(outputs: PixelOutputs) -> Tensor:
    """:func:`rba_score`."""
    assert outputs.masks is not None
    return rba_score(outputs.masks.mask_logits, outputs.masks.class_logits)
