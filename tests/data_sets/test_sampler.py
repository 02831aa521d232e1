"""Class-balanced sampling: frequencies, seeds, ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from detectron2.utils import comm

from gmm_anomaly.data.sampler import ClassBalancedSampler


def draws(sampler, number):
    return list(itertools.islice(sampler, number))


def test_frequencies_are_those_of_class_then_image():
    counts = np.zeros((20, 4), int)
    counts[:, 0] = 900  # in all images
    counts[:10, 1] = 5
    counts[3, 2] = 1  # in a single one; class 3 in none
    probabilities = np.zeros(20)
    for column in counts.T[:3]:
        probabilities += (column > 0) / (column > 0).sum() / 3
    number = 30000
    found = np.bincount(draws(ClassBalancedSampler(counts, seed=0), number), minlength=20) / number
    deviation = np.sqrt(probabilities * (1 - probabilities) / number)
    assert (np.abs(found - probabilities) < 5 * deviation).all()
    # The image of the rare class alone: a third, plus its share of the others.
    assert probabilities[3] == pytest.approx(1 / 3 + 1 / 30 + 1 / 60)


def test_seed_fixes_the_stream():
    counts = np.random.default_rng(0).integers(0, 2, (30, 5))
    first = draws(ClassBalancedSampler(counts, seed=3), 3000)
    assert draws(ClassBalancedSampler(counts, seed=3), 3000) == first
    sampler = ClassBalancedSampler(counts, seed=3)
    assert draws(sampler, 100) == draws(sampler, 100) == first[:100]
    assert draws(ClassBalancedSampler(counts, seed=4), 3000) != first


def test_ranks_share_one_stream(monkeypatch):
    counts = np.random.default_rng(1).integers(0, 2, (40, 6))
    whole = draws(ClassBalancedSampler(counts, seed=5), 3000)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert draws(ClassBalancedSampler(counts, seed=5), 1000) == whole[rank::3]


def test_indices_are_plain_and_in_range():
    sample = draws(ClassBalancedSampler(np.eye(3, 7), seed=0), 500)
    assert set(sample) == {0, 1, 2} and all(type(index) is int for index in sample)


@pytest.mark.parametrize("counts", [np.zeros((4, 3)), np.zeros((0, 3)), np.ones(4)])
def test_nothing_to_draw(counts):
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        ClassBalancedSampler(counts)


def test_without_a_seed_streams_differ():
    counts = np.ones((100, 2))
    streams = {tuple(draws(ClassBalancedSampler(counts), 50)) for _ in range(3)}
    assert len(streams) > 1
