"""The synthetic streets as data sets."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import build_train_loader, configure_synthetic, get_records, read_image, read_label
from gmm_anomaly.data.street_datasets import NAMES, StreetSettings
from gmm_anomaly.data.synthetic import CLASSES, PALETTE, render_street


@pytest.fixture
def small(cfg):
    node = cfg.DATASETS.SYNTHETIC
    node.HEIGHT, node.WIDTH, node.NUM_TRAIN, node.NUM_VAL, node.NUM_ANOMALY = 64, 128, 3, 2, 2
    return cfg


def test_defaults_are_those_of_the_config(cfg):
    settings = StreetSettings()
    node = cfg.DATASETS.SYNTHETIC
    assert settings == StreetSettings(**{key.lower(): value for key, value in node.items()})
    assert [len(get_records(name)) for name in NAMES] == [400, 50, 50]


def test_metadata(small):
    configure_synthetic(small)
    train, anomaly = MetadataCatalog.get(NAMES[0]), MetadataCatalog.get(NAMES[2])
    assert (train.evaluator_type, anomaly.evaluator_type) == ("closed_set", "anomaly")
    assert train.stuff_classes == list(CLASSES) and train.stuff_colors == [list(color) for color in PALETTE]
    assert (train.expected_count, anomaly.expected_count) == (3, 2)


def test_frames_are_the_renderers(small):
    small.DATASETS.SYNTHETIC.SEED = 5
    configure_synthetic(small)
    for place, name in enumerate(NAMES):
        record = get_records(name)[1]
        assert (record["file_name"], record["image_id"]) == (f"{name}/000001", "000001")
        image, label = render_street(15 + place, 1, height=64, width=128, anomalies=place == 2)
        np.testing.assert_array_equal(read_image(record, "RGB"), image)
        expected = label
        if place == 2:
            expected = np.select([label == 254, label == 255], [1, 255], 0)
        np.testing.assert_array_equal(read_label(record, MetadataCatalog.get(name)), expected)


def test_splits_and_seeds_share_no_street():
    seeds = [split.seed for seed in range(4) for split in StreetSettings(seed=seed).splits()]
    assert len(set(seeds)) == len(seeds)


def test_cached_frames_equal_rendered_ones(small, tmp_path):
    configure_synthetic(small)
    rendered = {
        name: [(read_image(r, "RGB"), read_label(r, MetadataCatalog.get(name))) for r in get_records(name)]
        for name in NAMES
    }
    small.DATASETS.SYNTHETIC.CACHE_DIR = str(tmp_path / "cache")
    configure_synthetic(small)
    for name, frames in rendered.items():
        records = get_records(name)
        assert all(record["file_name"].startswith(str(tmp_path / "cache")) for record in records)
        for record, (image, label) in zip(records, frames, strict=True):
            np.testing.assert_array_equal(read_image(record, "RGB"), image)
            np.testing.assert_array_equal(read_label(record, MetadataCatalog.get(name)), label)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(files) == 14
    get_records(NAMES[0])
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    # Another size goes to another folder.
    small.DATASETS.SYNTHETIC.WIDTH = 160
    configure_synthetic(small)
    assert read_image(get_records(NAMES[1])[0], "RGB").shape == (64, 160, 3)


def test_training_batches(small):
    small.DATASETS.TRAIN = (NAMES[0],)
    small.SOLVER.IMS_PER_BATCH = 2
    small.DATALOADER.SAMPLER_TRAIN = "ClassBalancedSampler"
    small.INPUT.CROP.ENABLED, small.INPUT.CROP.TYPE, small.INPUT.CROP.SIZE = True, "absolute", [32, 48]
    configure_synthetic(small)
    batch = next(iter(build_train_loader(small)))
    assert [item["image"].shape for item in batch] == [(3, 32, 48)] * 2
    assert all(item["sem_seg"].max() < len(CLASSES) or (item["sem_seg"] == 255).any() for item in batch)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("HEIGHT", 10, "DATASETS.SYNTHETIC.HEIGHT: expected 64 or more, found 10"),
        ("WIDTH", 100, "DATASETS.SYNTHETIC.WIDTH: expected 128 or more, found 100"),
        ("NUM_VAL", 0, "DATASETS.SYNTHETIC.NUM_VAL: expected 1 or more, found 0"),
        ("SEED", -1, "DATASETS.SYNTHETIC.SEED: expected 0 or more, found -1"),
    ],
)
def test_bad_keys(small, key, value, message):
    small.DATASETS.SYNTHETIC[key] = value
    with pytest.raises(ValueError, match=message):
        configure_synthetic(small)
