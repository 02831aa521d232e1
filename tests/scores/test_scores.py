"""Anomaly scores against their textbook formulas in float64, and the contract every score keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from gmm_anomaly.scores import (
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
    "gmm_density": lambda z, d: -d.max(1),
    "gmm_likelihood": lambda z, d: -special.logsumexp(d, axis=1),
}


def test_every_registered_score_has_an_oracle():
    # Those of mask models have theirs in test_mask_scores.py, those on distances in test_hybrid.py, that on
    # moments in test_sml.py.
    elsewhere = {"maskomaly", "rba", "mask_void", "feature_distance", "hybrid", "sml"}
    assert set(known_scores()) == set(ORACLES) | elsewhere


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_score_is_its_formula(name, outputs):
    score = SCORE_REGISTRY.get(name)(outputs)
    assert score.shape == (2, 5, 6) and score.dtype == torch.float32
    expected = ORACLES[name](pixels(outputs.logits), pixels(outputs.log_density))
    np.testing.assert_allclose(score.flatten().numpy(), expected, rtol=1e-5, atol=1e-5)
    one = SCORE_REGISTRY.get(name)(PixelOutputs(outputs.logits[1], outputs.log_density[1]))
    torch.testing.assert_close(one, score[1])


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_higher_means_more_anomalous(name):
    known, unknown = torch.full((7, 1, 1), -5.0), torch.full((7, 1, 1), -5.0)
    known[2] = 9.0
    unknown[2] = -4.0
    score = SCORE_REGISTRY.get(name)
    assert score(PixelOutputs(unknown, unknown * 10)) > score(PixelOutputs(known, known * 10))


def test_unknown_score_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"TEST\.SCORES: unknown score 'mps'; known are .*energy.*msp"):
        get_scores(["msp", "mps"], given={LOGITS, LOG_DENSITY})


def test_density_score_needs_a_generative_classifier():
    with pytest.raises(ValueError, match=r"'gmm_density' needs class densities.*MODEL\.CLASSIFIER\.NAME"):
        get_scores(["gmm_density"], given={LOGITS})


def test_no_score_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        get_scores([], given={LOGITS, LOG_DENSITY})
