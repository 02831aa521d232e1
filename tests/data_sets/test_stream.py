"""The stream of training batches: the same from any batch on, for any number of workers and processes."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from gmm_anomaly.data import (
    ClassBalancedSampler,
    LabelRule,
    build_train_loader,
)
from gmm_anomaly.data.build import class_pixel_counts


def batches(cfg, number):
    return list(itertools.islice(build_train_loader(cfg), number))


def ids(found):
    return [item["image_id"] for batch in found for item in batch]


def assert_same(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        assert [item["file_name"] for item in got] == [item["file_name"] for item in wanted]
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["sem_seg"], other["sem_seg"])


@pytest.mark.parametrize(("sampler", "workers"), [("TrainingSampler", 2), ("ClassBalancedSampler", 0)])
def test_a_stream_can_begin_at_any_batch_with_any_workers(closed, sampler, workers):
    closed.DATALOADER.SAMPLER_TRAIN = sampler
    whole = batches(closed, 12)
    closed.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(closed)
    loader.dataset.begin(7, seed=closed.SEED)
    # Whatever else draws in this process.
    np.random.seed(123)
    assert_same(itertools.islice(loader, 5), whole[7:])


def test_seed_fixes_images_and_augmentation_and_every_image_is_augmented_anew(closed):
    found = batches(closed, 20)
    # An epoch has every image of all sets.
    assert sorted(ids(found[:2])) == list("abcdef")
    for item in itertools.chain(*found):
        assert item["image"].shape == (3, 8, 10)
        assert set(item["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}
    assert len({item["image"].numpy().tobytes() for item in itertools.chain(*found)}) == 60
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert_same(batches(closed, 20), found)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    closed.SEED = 8
    assert ids(batches(closed, 20)) != ids(found)


def test_a_stream_can_go_to_spawned_workers(closed):
    stream = build_train_loader(closed).dataset
    copy = pickle.loads(pickle.dumps(stream))
    vars(MetadataCatalog.get("one")).pop("stuff_classes")  # they have no catalog
    assert_same(itertools.islice(copy, 2), itertools.islice(stream, 2))


# ---- Class-balanced sampling ----


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
    sample = draws(ClassBalancedSampler(counts, seed=0), number)
    assert all(type(index) is int for index in sample[:10])
    found = np.bincount(sample, minlength=20) / number
    deviation = np.sqrt(probabilities * (1 - probabilities) / number)
    assert (np.abs(found - probabilities) < 5 * deviation).all()


def test_seed_fixes_the_stream_and_ranks_share_it(monkeypatch):
    counts = np.random.default_rng(1).integers(0, 2, (40, 6))
    sampler = ClassBalancedSampler(counts, seed=5)
    whole = draws(sampler, 3000)
    assert draws(sampler, 100) == whole[:100]
    streams = [draws(ClassBalancedSampler(counts, seed), 3000) for seed in (4, None, None)]
    assert whole not in streams and streams[1] != streams[2]
    for rank in range(3):
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert draws(ClassBalancedSampler(counts, seed=5), 1000) == whole[rank::3]


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        ClassBalancedSampler(np.zeros((4, 3)), seed=0)


def test_pixel_counts_of_classes(tmp_path, save_image, monkeypatch):
    rng = np.random.default_rng(0)
    labels = [rng.choice(np.uint8([0, 1, 3, 9]), (5, 6)) for _ in range(4)]
    records = [
        {"file_name": "", "sem_seg_file_name": save_image(tmp_path / f"{index}.png", label)}
        for index, label in enumerate(labels)
    ]
    rule = LabelRule.build("set", {0: 0, 1: 1, 2: 2, 3: 0, 9: 255}, num_classes=3)
    counts = class_pixel_counts(records, rule)
    expected = [[int(np.isin(label, raw).sum()) for raw in ([0, 3], [1], [2])] for label in labels]
    assert counts.dtype == np.int64 and counts.tolist() == expected
    # Rank 1 reads nothing and takes what rank 0 gathers.
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda data: [counts, data])
    assert class_pixel_counts([{"sem_seg_file_name": "not there"}], rule) is counts
