"""What a mask model (Mask2Former) gives a score to work on: masks, and a class distribution for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskOutputs:
    """Outputs of a mask model for one image.

    Attributes:
        mask_logits: (Q, H, W) float; the sigmoid is the mask of each query.
        class_logits: (Q, C + 1) float; the last one is "no object".
        anomaly_queries, road_queries: indices of queries that the ``maskomaly`` score treats apart; they hold
            for one checkpoint only.
    """

    mask_logits: Tensor
    class_logits: Tensor
    anomaly_queries: tuple[int, ...] = ()
    road_queries: tuple[int, ...] = ()


def semantic_evidence(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """``sum_i p_i(c) m_i`` over the queries, for the known classes (Mask2Former's semantic inference).

    Args:
        mask_logits: (Q, H, W) float.
        class_logits: (Q, C + 1) float, "no object" last.

    Returns:
        (C, H, W) float32, from 0 up; above 1 where several queries claim a pixel for the same class.

    Raises:
        ValueError: shapes that do not belong together.
    """
    check_shapes(mask_logits, class_logits)
    known = class_logits.float().softmax(dim=-1)[:, :-1]
    with torch.autocast(mask_logits.device.type, enabled=False):
        return torch.einsum("qc,qhw->chw", known, mask_logits.float().sigmoid())


def check_shapes(mask_logits: Tensor, class_logits: Tensor) -> None:
    """Raise ValueError unless these are (Q, H, W) and (Q, C + 1) with one Q and at least one class."""
    fits = mask_logits.ndim == 3 and class_logits.ndim == 2 and len(mask_logits) == len(class_logits)
    if not fits or class_logits.shape[1] < 2:
        raise ValueError(
            "expected mask_logits (Q, H, W) and class_logits (Q, C + 1) of one image with the same number of "
            f"queries Q, found {tuple(mask_logits.shape)} and {tuple(class_logits.shape)}"
        )
