"""A model without trained weights, made to run as a trained one does: for measuring what it costs."""

from __future__ import annotations

import torch
from torch import nn

from gmm_anomaly.gmm import GaussianMixtures, TiedGaussians
from gmm_anomaly.modeling.classifiers import RunningMeanPrototypes
from gmm_anomaly.modeling.feature_distance import FeatureDistance, MaxLogitMoments

# Pretrained weights change no cost, and need not be there.
NO_WEIGHTS = [
    part
    for key in ("WEIGHTS", "BACKBONE.WEIGHTS", "MASK2FORMER.WEIGHTS")
    for part in (f"MODEL.{key}", "")
]


@torch.no_grad()
def make_ready(model: nn.Module) -> None:
    """Mark as fitted whatever refuses to run unfitted; its values stay what they are, or become 1."""
    for module in model.modules():
        if isinstance(module, (GaussianMixtures, RunningMeanPrototypes)):
            module.fitted.fill_(True)
        elif isinstance(module, TiedGaussians):
            module.seen.fill_(True)
        elif isinstance(module, FeatureDistance):
            module.log_std.fill_(1)
            module.hybrid_moments[1].fill_(1)
        elif isinstance(module, MaxLogitMoments):
            module.std.fill_(1)
