"""Gaussians with one covariance, against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from gmm_anomaly.gmm import TiedGaussians, TiedGaussianStatistics, UnfittedMixtureError
from gmm_anomaly.gmm.tied_gaussians import SHRINKAGE, _components, _whitening

CLASSES, DIM, COUNT = 4, 6, 500


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES - 1, COUNT)  # the last class is never seen
    spread = rng.normal(size=(DIM, DIM))
    features = rng.normal(size=(COUNT, DIM)) @ spread + 3 * rng.normal(size=(CLASSES, DIM))[labels] + 50
    return features, labels


def fitted(features, labels, parts=1, shrinkage=SHRINKAGE):
    statistics = TiedGaussianStatistics(CLASSES, features.shape[1])
    for part in np.array_split(np.arange(len(features)), parts):
        statistics.add(torch.from_numpy(features[part]), torch.from_numpy(labels[part]))
    gaussians = TiedGaussians(CLASSES, features.shape[1], shrinkage)
    gaussians.fit(statistics)
    return gaussians


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 0.3])
def test_distances_are_the_mahalanobis_formula(sample, shrinkage):
    features, labels = sample
    means = np.stack([features[labels == c].mean(0) for c in range(CLASSES - 1)])
    residual = features - means[labels]
    covariance = residual.T @ residual / COUNT
    covariance += shrinkage * np.diag(covariance).mean() * np.eye(DIM)
    offsets = features[:, None] - means
    expected = np.einsum("ncd,de,nce->nc", offsets, np.linalg.inv(covariance), offsets).min(1)
    found = fitted(features, labels, 7, shrinkage).squared_distance(torch.from_numpy(features))
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


@pytest.fixture(scope="module")
def blobs():
    """Five groups far from each other, of one covariance."""
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 5, 3000)
    spread = np.diag(np.linspace(0.2, 3.0, DIM)) @ rng.normal(size=(DIM, DIM))
    return rng.normal(size=(3000, DIM)) @ spread + 40 * rng.normal(size=(5, DIM))[groups] + 20, groups


def components_of(features, room=8, order=None, parts=6):
    """Gaussians found without labels, and the statistics they are of; images come in any order."""
    statistics = TiedGaussianStatistics(1, features.shape[1])
    images = np.array_split(np.arange(len(features)), parts)
    for image in range(parts) if order is None else order:
        values = torch.from_numpy(features[images[image]])
        statistics.add(values, torch.zeros(len(values), dtype=torch.int64), seed=int(image))
    statistics.reduce()
    gaussians = TiedGaussians(room, features.shape[1])
    gaussians.fit(statistics)
    return gaussians, statistics


def test_components_without_labels_are_the_groups(blobs):
    features, groups = (part[blobs[1] < 2] for part in blobs)
    gaussians, _ = components_of(features, room=2)
    means = np.stack([features[groups == group].mean(0) for group in range(2)])
    residual = features - means[groups]
    covariance = residual.T @ residual / len(features)
    covariance += SHRINKAGE * np.diag(covariance).mean() * np.eye(DIM)
    offsets = features[:, None] - means
    expected = np.einsum("ncd,de,nce->nc", offsets, np.linalg.inv(covariance), offsets).min(1)
    found = gaussians.squared_distance(torch.from_numpy(features))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-2)


def test_many_components_are_as_good_as_those_of_scikit_learn(blobs):
    features, _ = blobs
    white = features - features.mean(0)
    covariance = white.T @ white / len(white)
    covariance += SHRINKAGE * np.diag(covariance).mean() * np.eye(DIM)
    whitening = _whitening(torch.from_numpy(white.T @ white / len(white)))
    np.testing.assert_allclose((whitening @ whitening.T).numpy(), np.linalg.inv(covariance), rtol=1e-6)
    means, count, _ = _components(torch.from_numpy(white), whitening, 40)
    assert int(count.sum()) == len(white) and bool((count > 0).all())
    white = white @ whitening.numpy()
    ours = ((white[:, None] - (means @ whitening).numpy()) ** 2).sum(-1).min(1).sum()
    oracle = KMeans(40, n_init=1, max_iter=10, random_state=0).fit(white)
    assert ours < 1.05 * oracle.inertia_


def test_few_features_have_few_components(blobs):
    gaussians, _ = components_of(blobs[0][:60], room=200, parts=2)
    assert int(gaussians.seen.sum()) == 3
    assert int(components_of(blobs[0][:5], parts=2)[0].seen.sum()) == 1
    same, _ = components_of(np.ones((100, DIM)))
    assert torch.isfinite(same.squared_distance(torch.zeros(1, DIM))).all()


def test_features_are_kept_by_chance_whatever_their_order(blobs, monkeypatch):
    features, _ = blobs
    monkeypatch.setattr("gmm_anomaly.gmm.tied_gaussians.KEPT_FEATURES", 200)
    ordered, statistics = components_of(features, parts=60)
    kept = statistics.kept()
    assert kept.shape == (200, DIM)
    other, shuffled = components_of(features, parts=60, order=np.random.default_rng(2).permutation(60))
    assert torch.equal(kept, shuffled.kept())
    torch.testing.assert_close(other.whitened_means, ordered.whitened_means)
    # Each feature with the same chance: of every image some, none twice.
    place = {tuple(row): index for index, row in enumerate(features.astype(np.float32))}
    found = {place[tuple(row)] for row in kept.numpy()}
    assert len(found) == 200 and len({index // 50 for index in found}) > 50


def test_nothing_to_fit_and_nothing_fitted_are_named():
    with pytest.raises(UnfittedMixtureError, match="not fitted"):
        TiedGaussians(2, 3).squared_distance(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="found none"):
        TiedGaussians(2, 3).fit(TiedGaussianStatistics(2, 3))
