"""The score that adds the classifier's own and the distances of backbone features, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gmm_anomaly.scores import FEATURE_DISTANCE, LOG_DENSITY, LOGITS, PixelOutputs, get_scores

MOMENTS = (torch.tensor(2.0), torch.tensor(4.0))


def outputs(log_density=None):
    # One pixel, two classes: the energy is -log(1 + 3).
    logits = torch.tensor([0.0, math.log(3.0)]).view(2, 1, 1)
    return PixelOutputs(logits, log_density, feature_distance=torch.tensor([[1.5]]), hybrid_moments=MOMENTS)


def test_generative_evidence_is_standardised_and_added():
    hybrid = get_scores(["hybrid"], given={LOGITS, LOG_DENSITY, FEATURE_DISTANCE})["hybrid"]
    density = torch.tensor([-30.0, -10.0]).view(2, 1, 1)
    assert float(hybrid(outputs(density))) == pytest.approx((10 - 2) / 4 + 1.5)


def test_the_energy_of_a_generative_classifier_where_that_is_asked_for():
    hybrid = get_scores(["hybrid"], given={LOGITS, LOG_DENSITY, FEATURE_DISTANCE})["hybrid"]
    density = torch.tensor([-30.0, -10.0]).view(2, 1, 1)
    asked = replace(outputs(density), hybrid_with="energy")
    assert float(hybrid(asked)) == pytest.approx((-math.log(4) - 2) / 4 + 1.5)


def test_without_densities_the_evidence_is_the_energy():
    scores = get_scores(["hybrid", "feature_distance"], given={LOGITS, FEATURE_DISTANCE})
    assert float(scores["hybrid"](outputs())) == pytest.approx((-math.log(4) - 2) / 4 + 1.5)
    assert float(scores["feature_distance"](outputs())) == 1.5


def test_a_model_without_distances_names_the_key():
    with pytest.raises(ValueError, match="MODEL.FEATURE_DISTANCE.FEATURES"):
        get_scores(["hybrid"], given={LOGITS, LOG_DENSITY})
