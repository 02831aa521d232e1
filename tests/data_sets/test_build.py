"""Loaders by config, and what they refuse."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from gmm_anomaly.data import (
    build_test_loader,
    build_train_loader,
    check_num_classes,
    register_anomaly_dataset,
    register_segmentation_dataset,
)
from gmm_anomaly.data.loader import lost_workers_explained


@pytest.fixture
def closed(tmp_path, make_pairs, cfg):
    """Two closed sets of three classes with different label values, and a config that trains on both."""
    make_pairs(tmp_path / "one", "abcd", values=(0, 1, 2, 255))
    make_pairs(tmp_path / "two", "ef", values=(10, 11, 12))
    register_segmentation_dataset("one", tmp_path / "one/images", tmp_path / "one/labels", classes="xyz")
    register_segmentation_dataset(
        "two",
        tmp_path / "two/images",
        tmp_path / "two/labels",
        classes="xyz",
        label_map={10: 0, 11: 1, 12: 2},
    )
    cfg.DATASETS.TRAIN = ("one", "two")
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [8, 10]
    return cfg


def assert_same(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        assert [item["file_name"] for item in got] == [item["file_name"] for item in wanted]
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["sem_seg"], other["sem_seg"])


@pytest.mark.parametrize("sampler", ["TrainingSampler", "ClassBalancedSampler"])
@pytest.mark.parametrize("workers", [0, 3])
def test_a_stream_can_begin_at_any_batch_with_any_workers(closed, sampler, workers):
    closed.DATALOADER.SAMPLER_TRAIN = sampler
    whole = list(itertools.islice(build_train_loader(closed), 12))
    closed.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(closed)
    loader.dataset.begin(7, seed=closed.SEED)
    # Whatever else draws in this process.
    np.random.seed(123)
    assert_same(itertools.islice(loader, 5), whole[7:])


def test_the_same_image_is_augmented_anew_every_time(closed):
    closed.INPUT.CROP.ENABLED = False
    closed.DATALOADER.ASPECT_RATIO_GROUPING = False
    seen = {
        item["image"].numpy().tobytes()
        for batch in itertools.islice(build_train_loader(closed), 20)
        for item in batch
        if item["image_id"] == "a"
    }
    assert len(seen) >= 9


def test_reading_leaves_the_generators_alone(closed):
    np.random.seed(3)
    torch.manual_seed(3)
    loader = build_train_loader(closed)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    ids(loader, 2)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_ranks_have_together_what_one_process_has(closed, monkeypatch):
    closed.SOLVER.IMS_PER_BATCH = 4
    whole = list(itertools.islice(build_train_loader(closed), 3))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        share = list(itertools.islice(build_train_loader(closed), 3))
        assert_same(share, [batch[rank::2] for batch in whole])


@pytest.mark.parametrize("workers", [0, 2])
def test_grouped_batches_can_begin_anywhere_too(tmp_path, closed, make_pairs, workers):
    """Without crops batches hold wide or high images alone."""
    make_pairs(tmp_path / "high", "ghi", values=(0, 1, 2), size=(16, 12))
    register_segmentation_dataset("high", tmp_path / "high/images", tmp_path / "high/labels", classes="xyz")
    closed.DATASETS.TRAIN = ("one", "high")
    closed.INPUT.CROP.ENABLED = False
    whole = list(itertools.islice(build_train_loader(closed), 8))
    kinds = [{item["image_id"] in "ghi" for item in batch} for batch in whole]
    assert all(len(kind) == 1 for kind in kinds) and {True} in kinds and {False} in kinds
    closed.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(closed)
    loader.dataset.begin(3, seed=closed.SEED)
    assert_same(itertools.islice(loader, 5), whole[3:])


def test_a_killed_worker_is_explained(closed):
    closed.DATALOADER.NUM_WORKERS = 1
    with (
        pytest.raises(RuntimeError, match=r"DataLoader worker .*memory.*lower DATALOADER.NUM_WORKERS"),
        lost_workers_explained(),
    ):
        batches = iter(build_train_loader(closed))
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        for _ in batches:
            pass


def ids(loader, batches):
    return [item["image_id"] for batch in itertools.islice(loader, batches) for item in batch]


def test_an_epoch_has_every_image_of_all_sets(closed):
    closed.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    np.random.seed(0)
    batches = list(itertools.islice(build_train_loader(closed), 2))
    assert [len(batch) for batch in batches] == [3, 3]
    items = [item for batch in batches for item in batch]
    assert sorted(item["image_id"] for item in items) == list("abcdef")
    for item in items:
        assert item["image"].shape == (3, 8, 10)
        assert set(item["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}


def test_seed_fixes_the_order_of_images(closed):
    first = ids(build_train_loader(closed), 20)
    assert ids(build_train_loader(closed), 20) == first
    closed.SEED = 8
    assert ids(build_train_loader(closed), 20) != first


def test_class_balanced_sampler(tmp_path, closed, save_image):
    """A class that only image "e" has makes it as frequent as the class."""
    save_image(tmp_path / "two/labels/e.png", np.full((12, 16), 12, np.uint8))
    for name in ("one/labels/a", "one/labels/b", "one/labels/c", "one/labels/d", "two/labels/f"):
        save_image(tmp_path / f"{name}.png", np.full((12, 16), 10 * name.startswith("two"), np.uint8))
    closed.DATALOADER.SAMPLER_TRAIN = "ClassBalancedSampler"
    closed.DATALOADER.CLASS_INDEX_DIR = str(tmp_path / "index")
    seen = Counter(ids(build_train_loader(closed), 200))
    # 600 draws, half of them from the class of "e": standard deviation 12.
    assert abs(seen["e"] - 300) < 60
    assert set(seen) == set("abcdef")
    assert {path.name for path in (tmp_path / "index").iterdir()} == {
        "one.class_index.npz",
        "two.class_index.npz",
    }


def test_class_index_lies_in_the_output_folder_by_default(tmp_path, closed):
    closed.DATALOADER.SAMPLER_TRAIN = "ClassBalancedSampler"
    build_train_loader(closed)
    assert (tmp_path / "output/one.class_index.npz").is_file()


def test_loader_can_go_to_spawned_workers(closed):
    loader = build_train_loader(closed)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert_same(itertools.islice(copy, 2), itertools.islice(loader.dataset, 2))
    test_loader = build_test_loader(closed, "one")
    assert len(pickle.loads(pickle.dumps(test_loader.dataset))) == 4


def test_workers_share_the_stream_and_name_bad_files(tmp_path, closed):
    closed.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    closed.DATALOADER.NUM_WORKERS = 2
    assert sorted(ids(build_train_loader(closed), 2)) == list("abcdef")
    (tmp_path / "one/images/c.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"one/images/c.png cannot be decoded"):
        ids(build_train_loader(closed), 4)


def test_test_loader_gives_each_image_once(closed):
    batches = list(build_test_loader(closed, "one"))
    assert [len(batch) for batch in batches] == [1] * 4
    assert [batch[0]["image_id"] for batch in batches] == list("abcd")
    assert "sem_seg" not in batches[0][0]


def test_withheld_labels_load_for_prediction_but_not_for_training(tmp_path, closed):
    register_segmentation_dataset("secret", tmp_path / "one/images", None, classes="xyz")
    assert len(build_test_loader(closed, "secret")) == 4
    closed.DATASETS.TRAIN = ("secret",)
    with pytest.raises(
        ValueError, match="DATASETS.TRAIN: secret has images without labels, for example .*a.png"
    ):
        build_train_loader(closed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", (), "DATASETS.TRAIN: expected at least one data set"),
        ("DATASETS.TRAIN", ("nonsense",), "unknown data set 'nonsense'.*Known data sets: .*camvid_train"),
        (
            "SOLVER.IMS_PER_BATCH",
            0,
            "SOLVER.IMS_PER_BATCH: expected a positive multiple of the 1 processes, found 0",
        ),
        (
            "DATALOADER.SAMPLER_TRAIN",
            "RandomSampler",
            "DATALOADER.SAMPLER_TRAIN: expected one of TrainingSampler, ClassBalancedSampler, found "
            "'RandomSampler'",
        ),
    ],
)
def test_bad_keys(closed, key, value, message):
    closed.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_train_loader(closed)


def test_unknown_test_set(closed):
    with pytest.raises(ValueError, match="unknown data set 'camvid_tst'"):
        build_test_loader(closed, "camvid_tst")


def test_number_of_classes(tmp_path, closed):
    register_anomaly_dataset("odd", tmp_path / "one/images", None)
    closed.DATASETS.TEST = ("one", "odd")
    check_num_classes(closed)
    closed.MODEL.CLASSIFIER.NUM_CLASSES = 19
    with pytest.raises(
        ValueError, match="DATASETS.TRAIN: one has 3 classes, MODEL.CLASSIFIER.NUM_CLASSES is 19"
    ):
        check_num_classes(closed)
    closed.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="DATASETS.TEST: one has 3 classes"):
        check_num_classes(closed)


def test_classes_are_not_asked_of_the_disk(tmp_path, closed):
    register_segmentation_dataset("absent", tmp_path / "nowhere", None, classes="xyz")
    closed.DATASETS.TRAIN = ("absent",)
    check_num_classes(closed)


def test_training_sets_must_agree(tmp_path, closed):
    register_segmentation_dataset("other", tmp_path / "one/images", None, classes="xyw")
    closed.DATASETS.TRAIN = ("one", "other")
    with pytest.raises(ValueError, match=r"one and other have different classes \(x, y, z; x, y, w\)"):
        check_num_classes(closed)


def test_anomaly_sets_are_not_for_training(tmp_path, closed):
    register_anomaly_dataset("odd", tmp_path / "one/images", None)
    closed.DATASETS.TRAIN = ("odd",)
    with pytest.raises(ValueError, match="DATASETS.TRAIN: odd is an anomaly set"):
        check_num_classes(closed)


def test_unknown_names_are_found_early(closed):
    closed.DATASETS.TEST = ("camvid_ood",)
    with pytest.raises(ValueError, match="DATASETS.TEST: unknown data set 'camvid_ood'. Did you mean"):
        check_num_classes(closed)
