"""Scores of mask models: what every known class rejects, what none claims, and Maskomaly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .outputs import MASKS, PixelOutputs, check_shapes, semantic_map
from .registry import register_score

logger = logging.getLogger(__name__)

# Maskomaly: a query is accepted when its best class is a known one and has more than this probability.
ACCEPTED_PROBABILITY = 0.7
# Where two masks of known classes are both above this, there is a border between known things.
BORDER_MASK = 0.1
# Shares of the rejection map and of the anomaly queries in the score.
REJECTION_WEIGHT, QUERY_WEIGHT = 0.6, 0.4


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


@register_score("rba")
def rba(outputs: PixelOutputs) -> Tensor:
    """``-sum_c tanh z_c`` (Nayal et al., ICCV 2023). The logits z of a mask model are its semantic map, so it
    is :func:`rba_score` there; other models have to be trained for it (``MODEL.OUTLIER.LOSS``)."""
    return -outputs.logits.tanh().sum(dim=-3)


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


def maskomaly_score(
    mask_logits: Tensor,
    class_logits: Tensor,
    anomaly_queries: Sequence[int] = (),
    road_queries: Sequence[int] = (),
) -> Tensor:
    """Maskomaly's score (Ackermann et al., BMVC 2023), with the constants of its released code.

    With masks ``m_i`` (sigmoid) and the best class's probability ``p_i`` ("no object" may be the best):
    the rejection map is the minimum of 1 and all ``1 - m_i p_i`` of accepted queries (a known class with
    ``p_i > 0.7``) and of the road queries; it is 0 on borders, where two masks of queries with a known best
    class exceed 0.1. The score is ``0.6 * rejection + 0.4 * max m_i p_i over the anomaly queries``.

    Args:
        mask_logits: (Q, H, W) float.
        class_logits: (Q, C + 1) float, "no object" last.
        anomaly_queries: queries that light up on anomalies, found with labels for this very checkpoint; none:
            the second term is 0.
        road_queries: queries that count as accepted whatever their class, likewise.

    Returns:
        (H, W) float32 in [0, 1], higher = more anomalous.

    Raises:
        ValueError: shapes that do not belong together, or a query that does not exist.
    """
    check_shapes(mask_logits, class_logits)
    queries, classes = len(class_logits), class_logits.shape[1] - 1
    for name, chosen in (("anomaly_queries", anomaly_queries), ("road_queries", road_queries)):
        wrong = [query for query in chosen if not 0 <= query < queries]
        if wrong:
            raise ValueError(f"{name}: expected indices from 0 to {queries - 1}, found {wrong}")
    confidence, best = class_logits.float().softmax(dim=-1).max(dim=-1)
    known = (best < classes).tolist()
    accepted = ((best < classes) & (confidence > ACCEPTED_PROBABILITY)).tolist()

    # One query after the other: a second tensor of all masks would double the memory of a large image.
    size = mask_logits.shape[1:]
    rejection = torch.ones(size, device=mask_logits.device)
    anomaly = torch.zeros_like(rejection)
    claims = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    for query in range(queries):
        rejecting = accepted[query] or query in road_queries
        if not (rejecting or known[query] or query in anomaly_queries):
            continue
        mask = mask_logits[query].float().sigmoid()
        claimed = mask * confidence[query]
        if rejecting:
            rejection = torch.minimum(rejection, 1 - claimed)
        if query in anomaly_queries:
            anomaly = torch.maximum(anomaly, claimed)
        if known[query]:
            claims += mask > BORDER_MASK
    rejection = rejection.masked_fill(claims >= 2, 0)
    return REJECTION_WEIGHT * rejection + QUERY_WEIGHT * anomaly


@register_score("maskomaly", needs=MASKS)
def maskomaly(outputs: PixelOutputs) -> Tensor:
    """:func:`maskomaly_score` with the model's query sets; a warning, once, without an anomaly query."""
    masks = outputs.masks
    assert masks is not None
    if not masks.anomaly_queries:
        _warn_without_queries()
    return maskomaly_score(masks.mask_logits, masks.class_logits, masks.anomaly_queries, masks.road_queries)


@cache
def _warn_without_queries() -> None:
    logger.warning(
        "the score 'maskomaly' has no anomaly queries, so it is its rejection map alone (at most %g). They "
        "hold for one checkpoint only: find this one's with `gmm-anomaly find-queries` and set "
        "MODEL.MASK2FORMER.ANOMALY_QUERIES",
        REJECTION_WEIGHT,
    )
