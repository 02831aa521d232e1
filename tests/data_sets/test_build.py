"""Loaders by config, and what they refuse."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from gmm_anomaly.data import (
    build_test_loader,
    build_train_loader,
    check_num_classes,
    register_anomaly_dataset,
    register_segmentation_dataset,
)


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
    np.random.seed(1)
    expected = list(itertools.islice(iter(loader.dataset), 6))
    np.random.seed(1)
    for got, wanted in zip(itertools.islice(iter(copy), 6), expected, strict=True):
        assert got["image_id"] == wanted["image_id"] and torch.equal(got["image"], wanted["image"])
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
