"""Gaussians with one covariance, against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmm_anomaly.gmm import TiedGaussians, TiedGaussianStatistics, UnfittedMixtureError
from gmm_anomaly.gmm.tied_gaussians import SHRINKAGE

CLASSES, DIM, COUNT = 4, 6, 500


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES - 1, COUNT)  # the last class is never seen
    spread = rng.normal(size=(DIM, DIM))
    features = rng.normal(size=(COUNT, DIM)) @ spread + 3 * rng.normal(size=(CLASSES, DIM))[labels] + 50
    return features, labels


def fitted(features, labels, parts=1):
    statistics = TiedGaussianStatistics(CLASSES, features.shape[1])
    for part in np.array_split(np.arange(len(features)), parts):
        statistics.add(torch.from_numpy(features[part]), torch.from_numpy(labels[part]))
    gaussians = TiedGaussians(CLASSES, features.shape[1])
    gaussians.fit(statistics)
    return gaussians


def test_distances_are_the_mahalanobis_formula(sample):
    features, labels = sample
    means = np.stack([features[labels == c].mean(0) for c in range(CLASSES - 1)])
    residual = features - means[labels]
    covariance = residual.T @ residual / COUNT
    covariance += SHRINKAGE * np.diag(covariance).mean() * np.eye(DIM)
    offsets = features[:, None] - means
    expected = np.einsum("ncd,de,nce->nc", offsets, np.linalg.inv(covariance), offsets).min(1)
    found = fitted(features, labels, parts=7).squared_distance(torch.from_numpy(features))
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-3)
    assert found.dtype == torch.float32


def test_a_class_never_seen_is_no_neighbour(sample):
    features, labels = sample
    gaussians = fitted(features, labels)
    assert gaussians.seen.tolist() == [True, True, True, False]
    at_the_unseen_mean = gaussians.centre[None] + gaussians.whitened_means[3] @ gaussians.whitening.inverse()
    assert float(gaussians.squared_distance(at_the_unseen_mean)) > 0.5


def test_directions_without_variance_stay_finite():
    features = np.zeros((20, 3))
    features[:, 0] = np.arange(20)
    gaussians = fitted(features, np.zeros(20, dtype=np.int64))
    assert torch.isfinite(gaussians.squared_distance(torch.tensor([[0.0, 5.0, 0.0]]))).all()


def test_nothing_to_fit_and_nothing_fitted_are_named():
    with pytest.raises(UnfittedMixtureError, match="not fitted"):
        TiedGaussians(2, 3).squared_distance(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="found none"):
        TiedGaussians(2, 3).fit(TiedGaussianStatistics(2, 3))
