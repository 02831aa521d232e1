"""Scores on what pixel classifiers give: class logits, class densities, and distances of features."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from .outputs import FEATURE_DISTANCE, LOG_DENSITY, MAX_LOGIT_MOMENTS, OUTLIER_RATIO, PixelOutputs
from .registry import register_score

# Logits are 10 * cosine in PAnS.
COSINE_SCALE = 10.0


@register_score("msp")
def msp(outputs: PixelOutputs) -> Tensor:
    """``1 - max_c softmax(z)_c`` (Hendrycks and Gimpel, ICLR 2017); in [0, 1 - 1/C]."""
    # max softmax = exp(max z - logsumexp z): no (C, H, W) map of probabilities.
    logits = outputs.logits
    return 1 - (logits.amax(dim=-3) - logits.logsumexp(dim=-3)).exp()


@register_score("max_logit")
def max_logit(outputs: PixelOutputs) -> Tensor:
    """``-max_c z_c`` (Hendrycks et al., ICML 2022)."""
    return -outputs.logits.amax(dim=-3)


@register_score("energy")
def energy(outputs: PixelOutputs) -> Tensor:
    """``-logsumexp_c z_c``, temperature 1 (Liu et al., NeurIPS 2020)."""
    return -outputs.logits.logsumexp(dim=-3)


@register_score("entropy")
def entropy(outputs: PixelOutputs) -> Tensor:
    """Entropy of the softmax divided by log C; in [0, 1]."""
    log_probability = outputs.logits.log_softmax(dim=-3)
    classes = outputs.logits.shape[-3]
    return -(log_probability.exp() * log_probability).sum(dim=-3) / math.log(classes)


@register_score("prototype_distance")
def prototype_distance(outputs: PixelOutputs) -> Tensor:
    """``1 - (max_c z_c + 10) / 20`` (PAnS; Fontanel et al., CVPR workshops 2021).

    Half of one minus the largest cosine: in [0, 1] on the logits of a cosine classifier. On any others it
    ranks pixels as max_logit does.
    """
    return 1 - (outputs.logits.amax(dim=-3) + COSINE_SCALE) / (2 * COSINE_SCALE)


def sml_score(logits: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """``-(max_c z_c - mean(k)) / std(k)`` with the predicted class ``k = argmax_c z_c`` (Standardized Max
    Logits, Jung et al., ICCV 2021): every class's confidence on one scale.

    Args:
        logits: (..., C, H, W) floating point.
        means, stds: (C,) mean and standard deviation of the largest logit of the training pixels that are
            predicted as each class; standard deviations positive.

    Returns:
        (..., H, W) in standard deviations, higher = more anomalous.
    """
    largest, predicted = logits.max(dim=-3)
    return (means[predicted] - largest) / stds[predicted]


@register_score("sml", needs=MAX_LOGIT_MOMENTS)
def sml(outputs: PixelOutputs) -> Tensor:
    """:func:`sml_score` with the moments of the training set."""
    assert outputs.max_logit_moments is not None
    return sml_score(outputs.logits, *outputs.max_logit_moments)


@register_score("gmm_density", needs=LOG_DENSITY)
def gmm_density(outputs: PixelOutputs) -> Tensor:
    """``-max_c log p(x|c)``, before the LayerNorm over classes, which would remove the absolute likelihood
    (GMMSeg, section 4.3). In nats."""
    assert outputs.log_density is not None
    return -outputs.log_density.amax(dim=-3)


@register_score("gmm_likelihood", needs=LOG_DENSITY)
def gmm_likelihood(outputs: PixelOutputs) -> Tensor:
    """``-log sum_c p(x|c)``: negative log-likelihood under all classes together, up to a constant."""
    assert outputs.log_density is not None
    return -outputs.log_density.logsumexp(dim=-3)


@register_score("feature_distance", needs=FEATURE_DISTANCE)
def feature_distance(outputs: PixelOutputs) -> Tensor:
    """Log Mahalanobis distances to the known classes on several backbone levels (Lee et al., NeurIPS 2018),
    and on the embedding, standardised on the training set and summed. In standard deviations."""
    assert outputs.feature_distance is not None
    return outputs.feature_distance


@register_score("hybrid", needs=FEATURE_DISTANCE)
def hybrid(outputs: PixelOutputs) -> Tensor:
    """The classifier's own score, standardised on the training set, plus ``feature_distance``.

    What was trained to tell the known classes apart and what was not err on different pixels.
    """
    assert outputs.feature_distance is not None and outputs.hybrid_moments is not None
    mean, std = outputs.hybrid_moments
    return (hybrid_part(outputs) - mean) / std + outputs.feature_distance


def hybrid_part(outputs: PixelOutputs) -> Tensor:
    """What "hybrid" takes from the classifier, (..., H, W): ``gmm_density``, or ``energy`` where that is
    asked for or there are no densities."""
    if outputs.log_density is None or outputs.hybrid_with == "energy":
        return energy(outputs)
    return gmm_density(outputs)


@register_score("likelihood_ratio", needs=OUTLIER_RATIO)
def likelihood_ratio(outputs: PixelOutputs) -> Tensor:
    """Log-density of outliers less the largest log-density of what is known, in nats (UEM, IJCV 2025)."""
    assert outputs.outlier_ratio is not None
    return outputs.outlier_ratio


@register_score("outlier_posterior", needs=OUTLIER_RATIO)
def outlier_posterior(outputs: PixelOutputs) -> Tensor:
    """Probability of an outlier, were it as likely as what is known: the sigmoid of ``likelihood_ratio``."""
    return likelihood_ratio(outputs).sigmoid()


@register_score("dense_hybrid", needs=OUTLIER_RATIO)
def dense_hybrid(outputs: PixelOutputs) -> Tensor:
    """``log P(outlier | x) - log sum_c exp z_c`` (DenseHybrid; Grcic et al., ECCV 2022)."""
    return F.logsigmoid(likelihood_ratio(outputs)) + energy(outputs)


@register_score("exposed_distance", needs=OUTLIER_RATIO)
def exposed_distance(outputs: PixelOutputs) -> Tensor:
    """``feature_distance`` plus 0.3 times ``likelihood_ratio``, standardised on what is known: pasted objects
    teach which directions matter, and not how far a real one lies."""
    assert outputs.outlier_moments is not None
    mean, std, weight = outputs.outlier_moments
    return feature_distance(outputs) + weight * (likelihood_ratio(outputs) - mean) / std
