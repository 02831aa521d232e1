"""What a model says of an image's pixels: classifiers give it, tiles carry it, scores read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Kinds of outputs that a score may need. Every model gives logits.
LOGITS = "logits"
LOG_DENSITY = "log_density"
MASKS = "masks"
FEATURE_DISTANCE = "feature_distance"
MAX_LOGIT_MOMENTS = "max_logit_moments"
OUTLIER_RATIO = "outlier_ratio"


@dataclass(frozen=True)
class MaskOutputs:
    """Outputs of a mask model (Mask2Former) for one image.

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


@dataclass(frozen=True)
class PixelOutputs:
    """Class evidence of pixels, and what scores compare it with.

    Attributes:
        logits: (..., C, H, W) float32 class logits; of a mask model its semantic map ``sum_i p_i(c) m_i`` as
            it is, without a logarithm.
        log_density: (..., C, H, W) float32 class log-densities in nats, where the classifier is generative.
        embedding: (..., D, H, W) what the classifier compared with its classes.
        feature_distance: (..., H, W) float32, where the model measures distances on features: their
            standardised logarithms, summed over the levels.
        hybrid_with: what of the classifier "hybrid" adds to the distances, "density" or "energy" (where there
            is no density always the energy).
        hybrid_moments: mean and standard deviation of that over labelled training pixels, where
            ``feature_distance`` is.
        outlier_ratio: (..., H, W) float32, where the model has seen outliers: their log-density less the
            largest of what is known, in nats, summed over the levels of ``feature_distance``.
        outlier_moments: its mean and standard deviation over what is known, where it is, and the weight that
            the score "exposed_distance" gives it.
        max_logit_moments: (C,) mean and (C,) standard deviation of the largest logit of the training pixels
            predicted as each class, where the model has measured them.
        masks: the masks and their classes, of one image, where the model is a mask model.
    """

    logits: Tensor
    log_density: Tensor | None = None
    embedding: Tensor | None = None
    feature_distance: Tensor | None = None
    hybrid_with: str = "density"
    hybrid_moments: tuple[Tensor, Tensor] | None = None
    outlier_ratio: Tensor | None = None
    outlier_moments: tuple[Tensor, Tensor, float] | None = None
    max_logit_moments: tuple[Tensor, Tensor] | None = None
    masks: MaskOutputs | None = None


def semantic_map(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
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
