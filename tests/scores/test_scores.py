"""Anomaly scores against their textbook formulas in float64, and the contract every score keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats

from gmm_anomaly.scores import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    SCORE_REGISTRY,
    PixelOutputs,
    get_scores,
    known_scores,
)


@pytest.fixture
def outputs() -> PixelOutputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 5, 6, generator=generator) * 4
    return PixelOutputs(logits=logits, log_density=torch.randn(2, 7, 5, 6, generator=generator) * 30)


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().movedim(-3, -1).reshape(-1, 7).numpy()


ORACLES = {
    "msp": lambda z, d: 1 - special.softmax(z, axis=1).max(1),
    "max_logit": lambda z, d: -z.max(1),
    "energy": lambda z, d: -special.logsumexp(z, axis=1),
    "entropy": lambda z, d: stats.entropy(special.softmax(z, axis=1), axis=1) / np.log(7),
    "prototype_distance": lambda z, d: (1 - z.max(1) / 10) / 2,
    "rba": lambda z, d: -np.tanh(z).sum(1),
    "gmm_density": lambda z, d: -d.max(1),
    "gmm_likelihood": lambda z, d: -special.logsumexp(d, axis=1),
}


def test_every_registered_score_has_an_oracle():
    # Those of mask models have theirs in test_mask_scores.py, that on moments in test_sml.py, those on
    # distances below.
    elsewhere = {"maskomaly", "mask_void", "sml", "feature_distance", "hybrid"}
    elsewhere |= {"likelihood_ratio", "outlier_posterior", "dense_hybrid", "exposed_distance"}
    assert set(known_scores()) == set(ORACLES) | elsewhere


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_score_is_its_formula(name, outputs):
    score = SCORE_REGISTRY.get(name)(outputs)
    assert score.shape == (2, 5, 6) and score.dtype == torch.float32
    expected = ORACLES[name](pixels(outputs.logits), pixels(outputs.log_density))
    np.testing.assert_allclose(score.flatten().numpy(), expected, rtol=1e-5, atol=1e-5)
    one = SCORE_REGISTRY.get(name)(PixelOutputs(outputs.logits[1], outputs.log_density[1]))
    torch.testing.assert_close(one, score[1])


def test_scores_on_distances_by_hand():
    """One pixel, two classes: the energy is -log(1 + 3)."""
    density = torch.tensor([-30.0, -10.0]).view(2, 1, 1)
    outputs = PixelOutputs(
        torch.tensor([0.0, math.log(3.0)]).view(2, 1, 1),
        density,
        feature_distance=torch.tensor([[1.5]]),
        hybrid_moments=(torch.tensor(2.0), torch.tensor(4.0)),
    )
    scores = get_scores(["hybrid", "feature_distance"], given={LOGITS, LOG_DENSITY, FEATURE_DISTANCE})
    assert float(scores["feature_distance"](outputs)) == 1.5
    assert float(scores["hybrid"](outputs)) == pytest.approx((10 - 2) / 4 + 1.5)
    for other in (replace(outputs, hybrid_with="energy"), replace(outputs, log_density=None)):
        assert float(scores["hybrid"](other)) == pytest.approx((-math.log(4) - 2) / 4 + 1.5)
    given = replace(
        outputs,
        outlier_ratio=torch.tensor([[2.0]]),
        outlier_moments=(torch.tensor(1.0), torch.tensor(4.0), 0.3),
    )
    for name, expected in {
        "likelihood_ratio": 2,
        "outlier_posterior": 1 / (1 + math.exp(-2)),
        "dense_hybrid": -math.log(1 + math.exp(-2)) - math.log(4),
        "exposed_distance": 1.5 + 0.3 * (2 - 1) / 4,
    }.items():
        assert float(SCORE_REGISTRY.get(name)(given)) == pytest.approx(expected), name


def test_wrong_names_are_named():
    for names, given, message in (
        (["msp", "mps"], {LOGITS}, r"TEST\.SCORES: unknown score 'mps'; known are .*energy.*msp"),
        (["gmm_density"], {LOGITS}, r"'gmm_density' needs class densities.*MODEL\.CLASSIFIER\.NAME"),
        (["hybrid"], {LOGITS, LOG_DENSITY}, "MODEL.FEATURE_DISTANCE.FEATURES"),
        (["sml"], {LOGITS}, "'sml' needs moments of the largest logit"),
        ([], {LOGITS}, "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            get_scores(names, given=given)
