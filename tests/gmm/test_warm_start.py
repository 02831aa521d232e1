"""Starting classes from their data: k-means against scikit-learn, and when a class starts with what."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, spherical_kmeans
from gmm_anomaly.gmm.warm_start import WarmStartBuffer

COMPONENTS, DIM = 3, 8


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def clustered(number: int, clusters: int, seed: int, spread: float = 0.05) -> Tensor:
    centres = unit(clusters, DIM, seed=seed)
    index = torch.arange(number) % clusters
    return F.normalize(centres[index] + spread * unit(number, DIM, seed=seed + 1), dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_separated_clusters_are_those_of_scikit_learn(seed):
    features = clustered(120, 4, seed)
    centres, assignment = spherical_kmeans(features, 4)
    expected = KMeans(4, n_init=10, random_state=0).fit_predict(features.numpy())
    assert adjusted_rand_score(expected, assignment.numpy()) == 1
    for index in range(4):
        direction = F.normalize(features[assignment == index].double().sum(0), dim=0)
        torch.testing.assert_close(centres[index].double(), direction, rtol=0, atol=1e-6)


def test_rounds_raise_the_similarity_to_the_centres():
    features = unit(400, DIM, seed=3)
    reached = []
    for rounds in (0, 1, 3, 10, 30):
        centres, assignment = spherical_kmeans(features, 6, rounds)
        similarity = features @ centres.t()
        assert torch.equal(assignment, similarity.argmax(1))
        reached.append(float(similarity.amax(1).sum()))
    assert reached == sorted(reached) and reached[-1] > reached[0]


def test_seeds_do_not_come_from_the_global_state():
    features = unit(200, DIM, seed=4)
    torch.manual_seed(0)
    first = spherical_kmeans(features, 5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = spherical_kmeans(features, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    other = spherical_kmeans(features, 5, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("distinct, copies", [(1, 1), (1, 20), (2, 1), (3, 7), (4, 1)])
def test_fewer_distinct_features_than_clusters(distinct, copies):
    points = unit(distinct, DIM, seed=5)
    features = points.repeat(copies, 1)
    centres, assignment = spherical_kmeans(features, 5)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(centres[assignment], features, rtol=0, atol=1e-6)
    assert all(torch.isclose(points @ centre, torch.ones(()), atol=1e-5).any() for centre in centres)


class Oracle:
    """The features of each class that a bank has seen, in float64."""

    def __init__(self, classes: int) -> None:
        self.seen: list[list[Tensor]] = [[] for _ in range(classes)]

    def add(self, features: Tensor, labels: Tensor) -> None:
        for index, seen in enumerate(self.seen):
            seen.extend(features[labels == index])

    def features(self, index: int) -> Tensor:
        return torch.stack(self.seen[index])


def make_bank(classes: int, wanted: int, **options: object) -> GaussianMixtureBank:
    torch.manual_seed(0)
    options = {"memory_size": 200, "samples_per_update": 20, "momentum_mean": 0.5, **options}
    return GaussianMixtureBank(classes, COMPONENTS, DIM, warm_start_features=wanted, **options)


def record(bank: GaussianMixtureBank, features: Tensor, labels: Tensor, *, correct: bool = True) -> None:
    size = len(labels)
    bank.record(features, labels, torch.zeros(size, dtype=torch.int64), torch.full((size,), correct))


def assert_started_from(bank: GaussianMixtureBank, index: int, features: Tensor) -> None:
    """The state right after a class has started, from k-means and from sums in float64."""
    _, assignment = spherical_kmeans(features, COMPONENTS)
    count = bank.memory.count.view(-1, COMPONENTS)[index]
    total = bank.memory.total.view(-1, COMPONENTS, DIM)[index]
    for component in range(COMPONENTS):
        own = features[assignment == component].double()
        assert len(own) and count[component] == len(own)
        torch.testing.assert_close(total[component], own.sum(0), rtol=0, atol=1e-5)
        direction = F.normalize(own.sum(0), dim=0)
        deviation = ((own - direction).square().mean(0) + bank.variance_floor).sqrt()
        torch.testing.assert_close(bank.means[index, component].double(), direction, rtol=0, atol=1e-6)
        torch.testing.assert_close(bank.scales[index, component].double(), deviation, rtol=0, atol=1e-6)
    assert bank.started[index] and bank.fitted[index].all()


def test_a_class_starts_once_it_has_seen_enough_whatever_was_predicted():
    bank, oracle = make_bank(2, wanted=300), Oracle(2)
    means = bank.means.clone()
    for step in range(8):
        labels = torch.zeros(40, dtype=torch.int64)
        labels[:5] = 1
        labels[5] = 255
        features = clustered(40, COMPONENTS, seed=6)[
            torch.randperm(40, generator=torch.Generator().manual_seed(step))
        ]
        oracle.add(features, labels)
        record(bank, features, labels, correct=False)
        bank.commit()
        assert not bank.started.any() and not bank.fitted.any() and not bank.memory.count.any()
        assert torch.equal(bank.means, means)
    # The ninth batch brings the 34 features of class 0 that make it 306.
    features = clustered(34, COMPONENTS, seed=6)
    oracle.add(features, torch.zeros(34, dtype=torch.int64))
    record(bank, features, torch.zeros(34, dtype=torch.int64), correct=False)
    bank.commit()
    assert bank.started.tolist() == [True, False]
    # The buffer ends at the number that was asked for.
    assert_started_from(bank, 0, oracle.features(0)[:300])
    assert torch.equal(bank.means[1], means[1]) and not bank.memory.count[COMPONENTS:].any()


def test_a_rare_class_starts_after_many_batches():
    bank, oracle = make_bank(2, wanted=30), Oracle(2)
    for step in range(16):
        features, labels = clustered(42, COMPONENTS, seed=20), torch.zeros(42, dtype=torch.int64)
        labels[step : step + 2] = 1
        oracle.add(features, labels)
        record(bank, features, labels)
        bank.update()
        assert bool(bank.started[1]) == (step >= 14)
        if step == 14:
            assert bank.warm_start.count.tolist() == [0, 0]
            assert_started_from(bank, 1, oracle.features(1))


def test_update_leaves_classes_that_wait():
    bank = make_bank(3, wanted=30)
    means, scales = bank.means.clone(), bank.scales.clone()
    record(bank, clustered(20, COMPONENTS, seed=8), torch.ones(20, dtype=torch.int64))
    bank.update([0, 1, 2])
    assert torch.equal(bank.scales, scales) and not bank.fitted.any()
    torch.testing.assert_close(bank.means, F.normalize(means, dim=-1), rtol=0, atol=1e-6)


def test_a_class_never_seen_stays_unfitted_and_is_never_predicted():
    bank = make_bank(3, wanted=30)
    for step in range(6):
        labels = torch.arange(40) % 2
        record(bank, clustered(40, COMPONENTS, seed=30 + step % 2), labels)
        bank.update()
    assert bank.started.tolist() == [True, True, False]
    assert bank.fitted.any(dim=1).tolist() == [True, True, False]
    bank.eval()
    features = bank.unit_means[2]
    density = bank.class_log_density(torch.cat([features, unit(200, DIM, seed=9)]))
    assert not (density.argmax(1) == 2).any()
    assert density.isfinite().all() and not density[:, 2].exp().any()


def test_a_batch_gives_the_buffer_evenly_spaced_features():
    buffer = WarmStartBuffer(2, capacity=10, dim=DIM)
    features = unit(40, DIM, seed=10)
    labels = torch.tensor([0, 0, 1, -1] * 10)
    buffer.add_batch(features, labels, 7)
    buffer.add_batch(features[:0], labels[:0], 7)
    for index in range(2):
        own = features[labels == index]
        expected = own[torch.linspace(0, len(own) - 1, 7).long()]
        assert torch.equal(buffer.features[index, :7], expected)
    buffer.add_batch(features[:6], labels[:6], 7)
    assert buffer.count.tolist() == [10, 8]
    assert torch.equal(buffer.features[0, 7:10], features[[0, 1, 4]])
    assert torch.equal(buffer.features[1, 7], features[2])
    assert buffer.ready_classes(torch.tensor([True, True])) == [0]
    assert buffer.ready_classes(torch.tensor([False, True])) == []
    assert torch.equal(buffer.take(1)[7], features[2])
    assert buffer.count.tolist() == [10, 0]


def test_after_the_start_correct_pixels_enter_as_usual():
    bank, plain = make_bank(2, wanted=30), make_bank(2, wanted=0)
    start = clustered(33, COMPONENTS, seed=11)
    record(bank, start, torch.zeros(33, dtype=torch.int64))
    bank.commit()
    plain.initialise(0, start[:30])
    labels = torch.zeros(15, dtype=torch.int64)
    for each in (bank, plain):
        record(each, unit(15, DIM, seed=12), labels)
        each.update()
        record(each, unit(15, DIM, seed=13), labels, correct=False)
        each.update()
    for name in ("means", "scales", "memory.count", "memory.pointer", "memory.total", "memory.total_square"):
        assert torch.equal(bank.get_buffer(name), plain.get_buffer(name)), name
    assert bank.memory.count.sum() == 30 + 15


def test_initialise_replaces_what_the_class_held_and_leaves_the_others():
    bank = make_bank(2, wanted=0)
    for index in range(2):
        record(bank, unit(12, DIM, seed=14 + index), torch.full((12,), index))
    bank.update()
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    features = clustered(60, COMPONENTS, seed=16)
    bank.initialise(0, 3 * features)
    assert_started_from(bank, 0, features)
    assert torch.equal(bank.means[1], before["means"][1]) and torch.equal(bank.scales[1], before["scales"][1])
    for name in ("count", "pointer", "total", "total_square"):
        found, expected = bank.memory.get_buffer(name), before[f"memory.{name}"]
        assert torch.equal(found[COMPONENTS:], expected[COMPONENTS:]), name


def test_a_small_memory_takes_evenly_spaced_features_of_a_cluster():
    bank = make_bank(1, wanted=0, memory_size=5, samples_per_update=5)
    features = clustered(60, COMPONENTS, seed=17)
    bank.initialise(0, features)
    _, assignment = spherical_kmeans(features, COMPONENTS)
    for component in range(COMPONENTS):
        own = features[assignment == component].double()
        expected = own[torch.linspace(0, len(own) - 1, 5).long()].sum(0)
        torch.testing.assert_close(bank.memory.total[component], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
def test_fewer_features_than_components_still_give_unit_means(number):
    bank = make_bank(1, wanted=0)
    bank.initialise(0, unit(number, DIM, seed=18))
    torch.testing.assert_close(bank.means.norm(dim=-1), torch.ones(1, COMPONENTS), rtol=0, atol=1e-6)
    assert bank.memory.count.sum() == number
    assert bank.scales.min() >= bank.variance_floor**0.5 * (1 - 1e-6)


def test_initialise_names_what_is_wrong():
    bank = make_bank(2, wanted=0)
    with pytest.raises(ValueError, match=r"index: expected a class in 0 \.\. 1, found -1"):
        bank.initialise(-1, unit(9, DIM, seed=0))
    with pytest.raises(ValueError, match=rf"features: expected shape \(n >= 1, {DIM}\), found \(0, {DIM}\)"):
        bank.initialise(0, torch.zeros(0, DIM))


def test_waiting_features_survive_an_interruption():
    straight, first = make_bank(2, wanted=50), make_bank(2, wanted=50)
    features, labels = clustered(16, COMPONENTS, seed=40), (torch.arange(16) % 8 == 0).long()
    for _ in range(6):
        for bank in (straight, first):
            record(bank, features, labels)
            bank.update()
        resumed = make_bank(2, wanted=50)
        resumed.load_state_dict(first.state_dict())
        first = resumed
    assert straight.started.tolist() == [True, False]
    for name in ("means", "scales", "started", "fitted", "memory.count", "warm_start.count"):
        assert torch.equal(straight.get_buffer(name), first.get_buffer(name)), name
    torch.testing.assert_close(straight.memory.total, first.memory.total, rtol=0, atol=1e-9)


def test_without_a_warm_start_no_class_of_a_loaded_checkpoint_waits():
    waiting, plain = make_bank(2, wanted=50), make_bank(2, wanted=0)
    plain.load_state_dict(waiting.state_dict(), strict=False)
    record(plain, unit(10, DIM, seed=19), torch.ones(10, dtype=torch.int64))
    plain.update()
    assert plain.memory.count.tolist() == [0, 0, 0, 10, 0, 0]
    assert plain.fitted.tolist() == [[False] * 3, [True, False, False]]
