"""Starting classes from their data: k-means against scikit-learn, and when a class starts with what."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gmm_anomaly.gmm import GaussianMixtureBank, spherical_kmeans
from gmm_anomaly.gmm.warm_start import WarmStartBuffer

COMPONENTS, DIM = 3, 8


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def clustered(number: int, clusters: int, seed: int, spread: float = 0.05) -> Tensor:
    centres = unit(clusters, DIM, seed=seed)
    index = torch.arange(number) % clusters
    return F.normalize(centres[index] + spread * unit(number, DIM, seed=seed + 1), dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_separated_clusters_are_those_of_scikit_learn(seed):
    features = clustered(120, 4, seed)
    centres, assignment = spherical_kmeans(features, 4)
    expected = KMeans(4, n_init=10, random_state=0).fit_predict(features.numpy())
    assert adjusted_rand_score(expected, assignment.numpy()) == 1
    for index in range(4):
        direction = F.normalize(features[assignment == index].double().sum(0), dim=0)
        torch.testing.assert_close(centres[index].double(), direction, rtol=0, atol=1e-6)


@pytest.mark.parametrize("distinct, copies", [(1, 1), (1, 20), (3, 7), (4, 1)])
def test_fewer_distinct_features_than_clusters(distinct, copies):
    points = unit(distinct, DIM, seed=5)
    features = points.repeat(copies, 1)
    centres, assignment = spherical_kmeans(features, 5)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(centres[assignment], features, rtol=0, atol=1e-6)
    assert all(torch.isclose(points @ centre, torch.ones(()), atol=1e-5).any() for centre in centres)


def test_many_sets_at_once_are_as_each_alone():
    """Sets of their own length and content, one of them of a single distinct point."""
    sets = [clustered(50, 4, seed=50), unit(7, DIM, seed=51), unit(1, DIM, seed=52).repeat(30, 1)]
    features, valid = torch.full((3, 60, DIM), 0.1), torch.zeros(3, 60, dtype=torch.bool)
    for place, own in enumerate(sets):
        features[place, : len(own)], valid[place, : len(own)] = own, True
    centres, assignment = spherical_kmeans(features, 4, valid=valid)
    for place, own in enumerate(sets):
        alone, expected = spherical_kmeans(own, 4)
        torch.testing.assert_close(centres[place], alone, rtol=0, atol=1e-6)
        assert torch.equal(assignment[place, : len(own)], expected)


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
        if len(own) > bank.memory.slots:
            own = own[torch.linspace(0, len(own) - 1, bank.memory.slots).long()]
        assert len(own) and count[component] == len(own)
        torch.testing.assert_close(total[component], own.sum(0), rtol=0, atol=1e-5)
        direction = F.normalize(own.sum(0), dim=0)
        deviation = ((own - direction).square().mean(0) + bank.variance_floor).sqrt()
        torch.testing.assert_close(bank.means[index, component].double(), direction, rtol=0, atol=1e-6)
        torch.testing.assert_close(bank.scales[index, component].double(), deviation, rtol=0, atol=1e-6)
    assert bank.started[index] and bank.fitted[index].all()


@pytest.mark.parametrize("slots", [200, 20])
def test_a_class_starts_once_it_has_seen_enough_whatever_was_predicted(slots):
    bank, seen = make_bank(2, wanted=300, memory_size=slots), []
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    for step in range(9):
        # The ninth batch makes it 306 features of class 0 and 40 of class 1.
        labels = torch.zeros(40, dtype=torch.int64)
        labels[:5], labels[5] = 1, 255
        order = torch.randperm(40, generator=torch.Generator().manual_seed(step))
        features = clustered(40, COMPONENTS, seed=6)[order]
        seen.append(features[labels == 0])
        record(bank, features, labels, correct=False)
        bank.update([0, 1])
        if step < 8:
            assert not bank.started.any() and not bank.fitted.any() and not bank.memory.count.any()
            torch.testing.assert_close(bank.means, before["means"], rtol=0, atol=1e-6)
            bank.commit()
    assert bank.started.tolist() == [True, False]
    fresh = make_bank(2, wanted=0, memory_size=slots)
    # The buffer ends at the number that was asked for. The EM step after the start is Eq. 9's, at rest.
    features = torch.cat(seen)[:300]
    fresh.initialise(torch.tensor([0]), features[None], torch.ones(1, 300, dtype=torch.bool))
    assert_started_from(fresh, 0, features)
    for name in ("memory.count", "memory.total", "memory.total_square", "means", "scales"):
        torch.testing.assert_close(bank.get_buffer(name)[0], fresh.get_buffer(name)[0], rtol=0, atol=1e-6)
    assert not bank.memory.count[COMPONENTS:].any() and not bank.fitted[1].any()


def test_a_start_replaces_what_the_class_held_and_correct_pixels_enter_afterwards():
    bank = make_bank(2, wanted=0)
    for index in range(2):
        record(bank, unit(12, DIM, seed=14 + index), torch.full((12,), index))
    bank.update()
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    features = clustered(60, COMPONENTS, seed=16)
    bank.initialise(torch.tensor([0]), 3 * features[None], torch.ones(1, 60, dtype=torch.bool))
    assert_started_from(bank, 0, features)
    assert torch.equal(bank.means[1], before["means"][1]) and torch.equal(bank.scales[1], before["scales"][1])
    for name in ("count", "pointer", "total", "total_square"):
        found, expected = bank.memory.get_buffer(name), before[f"memory.{name}"]
        assert torch.equal(found[COMPONENTS:], expected[COMPONENTS:]), name
    for seed, correct in ((12, True), (13, False)):
        record(bank, unit(15, DIM, seed=seed), torch.zeros(15, dtype=torch.int64), correct=correct)
        bank.update()
    assert bank.memory.count[:COMPONENTS].sum() == 60 + 15


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


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a GPU's numbers or shapes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or name in ("_local_scalar_dense", "nonzero", "masked_select", "multinomial", "unique"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_on_a_gpu_a_class_starts_one_commit_later_and_nothing_waits(monkeypatch):
    monkeypatch.setattr(WarmStartBuffer, "_answers_late", True)
    bank, features = make_bank(2, wanted=30), clustered(40, COMPONENTS, seed=60)
    labels, waits = torch.zeros(40, dtype=torch.int64), []
    for step in range(4):
        with Waits() as mode:
            record(bank, features, labels)
            bank.update()
        waits.append(mode.found)
        # The first batch makes the class ready, the second commit starts it.
        assert bank.started.tolist() == [step > 0, False]
    # The number of ready classes is on the host by the next commit; nothing else is asked for.
    assert waits == [[], *[["_local_scalar_dense"]] * 3]


def test_without_a_warm_start_no_class_of_a_loaded_checkpoint_waits():
    waiting, plain = make_bank(2, wanted=50), make_bank(2, wanted=0)
    plain.load_state_dict(waiting.state_dict(), strict=False)
    record(plain, unit(10, DIM, seed=19), torch.ones(10, dtype=torch.int64))
    plain.update()
    assert plain.memory.count.tolist() == [0, 0, 0, 10, 0, 0]
    assert plain.fitted.tolist() == [[False] * 3, [True, False, False]]
