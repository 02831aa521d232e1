"""Loaders by config, what they refuse, and data sets that were registered with Detectron2 alone."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler

from gmm_anomaly.data import (
    SegmentationMapper,
    build_test_loader,
    build_train_loader,
    check_num_classes,
    get_records,
    register_anomaly_dataset,
    register_segmentation_dataset,
)
from gmm_anomaly.data.build import lost_workers_explained, present


def test_workers_share_the_stream_and_name_bad_files(tmp_path, closed):
    closed.DATALOADER.NUM_WORKERS = 2
    found = itertools.chain(*itertools.islice(build_train_loader(closed), 2))
    assert sorted(item["image_id"] for item in found) == list("abcdef")
    (tmp_path / "one/images/c.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"one/images/c.png cannot be decoded") as caught:
        list(itertools.islice(build_train_loader(closed), 4))
    # The error holds the iterator, but the workers are gone.
    assert caught and not multiprocessing.active_children()


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


def test_test_loader_gives_each_image_once(closed):
    loader = build_test_loader(closed, "one")
    batches = list(loader)
    assert [[item["image_id"] for item in batch] for batch in batches] == [["a"], ["b"], ["c"], ["d"]]
    assert "sem_seg" not in batches[0][0]
    assert len(pickle.loads(pickle.dumps(loader.dataset))) == 4


def test_of_several_data_sets_absent_ones_are_left_out(datasets_root, closed, caplog):
    assert present(["road_anomaly", "one", "camvid_val"], "DATASETS.TEST") == ["one"]
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == 2
    assert f"DATASETS.TEST: left out: road_anomaly: there is no folder {datasets_root}" in lines[0]
    for absent in (["road_anomaly"], ["road_anomaly", "camvid_val"]):
        with pytest.raises(
            FileNotFoundError, match=f"road_anomaly: there is no folder {datasets_root}/RoadAnom"
        ):
            present(absent, "DATASETS.TEST")


def test_withheld_labels_load_for_prediction_but_not_for_training(tmp_path, closed):
    register_segmentation_dataset("secret", tmp_path / "one/images", None, classes=list("xyz"))
    assert len(build_test_loader(closed, "secret")) == 4
    closed.DATASETS.TRAIN = ("secret",)
    with pytest.raises(ValueError, match="DATASETS.TRAIN: secret has images without labels, .*a.png"):
        build_train_loader(closed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", (), "DATASETS.TRAIN: expected at least one data set"),
        ("DATASETS.TRAIN", ("nonsense",), "unknown data set 'nonsense'"),
        ("DATALOADER.SAMPLER_TRAIN", "RandomSampler", "SAMPLER_TRAIN: expected one of .*, found 'RandomS"),
    ],
)  # fmt: skip
def test_bad_keys(closed, key, value, message):
    closed.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_train_loader(closed)


def test_number_of_classes(tmp_path, closed):
    register_anomaly_dataset("odd", tmp_path / "one/images", None)
    # The disk is not asked.
    register_segmentation_dataset("absent", tmp_path / "nowhere", None, classes=list("xyz"))
    register_segmentation_dataset("other", tmp_path / "one/images", None, classes=list("xyw"))
    register_segmentation_dataset("turned", tmp_path / "one/images", None, classes=list("yXz"))
    closed.DATASETS.TRAIN, closed.DATASETS.TEST = ("one", "absent"), ("one", "odd")
    check_num_classes(closed)
    for train, test, count, message in (
        (("one", "other"), (), 3, r"one and other have different classes \(x, y, z; x, y, w\)"),
        (("one",), ("other",), 3, r"TEST: one and other have different classes \(x, y, z; x, y, w\)"),
        (("one",), ("turned",), 3, r"one and turned have the classes in another order \(x, y, z; y, X, z\)"),
        (("odd",), (), 3, "DATASETS.TRAIN: odd is an anomaly set"),
        (("one",), (), 19, "TRAIN: one has 3 classes, MODEL.CLASSIFIER.NUM_CLASSES is 19; set it to 3"),
        ((), ("one",), 19, "DATASETS.TEST: one has 3 classes"),
        ((), ("camvid_ood",), 3, "DATASETS.TEST: unknown data set 'camvid_ood'. Did you mean"),
    ):
        closed.DATASETS.TRAIN, closed.DATASETS.TEST = train, test
        closed.MODEL.CLASSIFIER.NUM_CLASSES = count
        with pytest.raises(ValueError, match=message):
            check_num_classes(closed)


# ---- Detectron2's own registration and mapper ----


@pytest.fixture
def plain(tmp_path, make_pairs, cfg):
    """A data set of Detectron2's catalogs: no ``image_id``, an ignore label of its own."""
    make_pairs(tmp_path / "plain", "ab", values=(0, 1, 2, 254))
    records = [
        {"file_name": str(tmp_path / f"plain/images/{name}.png"), "height": 12, "width": 16}
        | {"sem_seg_file_name": str(tmp_path / f"plain/labels/{name}.png")}
        for name in "ab"
    ]
    DatasetCatalog.register("plain", lambda: records)
    metadata = {"stuff_classes": ["x", "y", "z"], "ignore_label": 254, "evaluator_type": "sem_seg"}
    MetadataCatalog.get("plain").set(**metadata)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("plain",)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]
    cfg.INPUT.COLOR_JITTER, cfg.INPUT.RANDOM_FLIP = 0.0, "none"
    return cfg


@pytest.mark.parametrize("sampler", ["TrainingSampler", "ClassBalancedSampler"])
def test_sets_of_detectron2_are_trained_on_and_tested(plain, sampler):
    check_num_classes(plain)
    plain.DATALOADER.SAMPLER_TRAIN = sampler
    batch = next(iter(build_train_loader(plain)))
    expected = np.resize([0, 1, 2, 255], (12, 16))
    for item in batch:
        assert "image_id" not in item
        np.testing.assert_array_equal(item["sem_seg"], expected)
    tested = [batch[0]["file_name"] for batch in build_test_loader(plain, "plain")]
    assert tested == [record["file_name"] for record in get_records("plain")]
    plain.MODEL.CLASSIFIER.NUM_CLASSES = 2
    with pytest.raises(ValueError, match="plain has 3 classes"):
        check_num_classes(plain)


def test_our_sets_with_detectron2s_mapper_and_our_mapper_in_its_loader(closed):
    """Where the labels hold train ids both read the same image and label."""
    closed.INPUT.CROP.ENABLED = False
    closed.INPUT.SCALE_RANGE = [1.0, 1.0]
    closed.INPUT.COLOR_JITTER, closed.INPUT.RANDOM_FLIP = 0.0, "none"
    closed.DATASETS.TRAIN = ("one",)
    detectron2 = DatasetMapper(is_train=True, augmentations=[], image_format=closed.INPUT.FORMAT)
    ours = SegmentationMapper(closed, True)
    for record in get_records("one"):
        theirs, mapped = detectron2(record), ours(record)
        assert {key: theirs[key] for key in ("height", "width", "image_id", "file_name")} == {
            key: mapped[key] for key in ("height", "width", "image_id", "file_name")
        }
        assert torch.equal(theirs["image"], mapped["image"])
        assert torch.equal(theirs["sem_seg"], mapped["sem_seg"])
    loader = build_detection_train_loader(
        get_records("one"), mapper=ours, sampler=TrainingSampler(4, shuffle=False), total_batch_size=4,
        num_workers=0,
    )  # fmt: skip
    assert [item["image_id"] for item in next(iter(loader))] == list("abcd")
