"""Pixel counts per image and class, and their cache on disk."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from detectron2.utils import comm

from gmm_anomaly.data import class_index
from gmm_anomaly.data.class_index import class_pixel_counts
from gmm_anomaly.data.label_rule import LabelRule

RULE = LabelRule.build("set", {0: 0, 1: 1, 2: 2, 3: 0, 9: 255}, num_classes=3)


@pytest.fixture
def records(tmp_path, save_image):
    rng = np.random.default_rng(0)
    return [
        {
            "file_name": "",
            "sem_seg_file_name": save_image(
                tmp_path / f"{i}.png", rng.choice(np.uint8([0, 1, 3, 9]), (5, 6))
            ),
        }
        for i in range(4)
    ]


@pytest.fixture
def reads(monkeypatch):
    """Names of the labels that were read."""
    names = []
    original = class_index.read_label
    monkeypatch.setattr(
        class_index, "read_label", lambda record, rule: names.append(record) or original(record, rule)
    )
    return names


def expected(records):
    labels = [class_index.read_label(record, RULE) for record in records]
    return [[int((label == value).sum()) for value in range(3)] for label in labels]


def test_counts(tmp_path, records):
    counts = class_pixel_counts("set", records, RULE, tmp_path / "new" / "folder")
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected(records))
    assert counts[:, 2].sum() == 0
    assert os.listdir(tmp_path / "new/folder") == ["set.class_index.npz"]


def test_second_call_reads_no_label(tmp_path, records, reads):
    first = class_pixel_counts("set", records, RULE, tmp_path)
    assert len(reads) == 4
    np.testing.assert_array_equal(class_pixel_counts("set", records, RULE, tmp_path), first)
    assert len(reads) == 4


def test_changed_labels_lists_and_maps_are_counted_again(tmp_path, records, reads, save_image):
    class_pixel_counts("set", records, RULE, tmp_path)
    save_image(tmp_path / "0.png", np.full((5, 6), 2, np.uint8))
    os.utime(tmp_path / "0.png", ns=(1, 1))
    assert class_pixel_counts("set", records, RULE, tmp_path)[0].tolist() == [0, 0, 30]
    assert len(class_pixel_counts("set", records[:3], RULE, tmp_path)) == 3
    other = LabelRule.build("set", dict(RULE.mapping) | {2: 1}, num_classes=3)
    assert class_pixel_counts("set", records[:3], other, tmp_path)[0].tolist() == [0, 30, 0]
    assert len(reads) == 4 + 4 + 3 + 3


@pytest.mark.parametrize("damage", [b"", b"no zip file", b"PK\x03\x04 cut off"])
def test_corrupt_cache_is_made_anew(tmp_path, records, caplog, damage):
    path = tmp_path / "set.class_index.npz"
    first = class_pixel_counts("set", records, RULE, tmp_path)
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(class_pixel_counts("set", records, RULE, tmp_path), first)
    assert "set.class_index.npz cannot be read" in caplog.text
    caplog.clear()
    class_pixel_counts("set", records, RULE, tmp_path)
    assert not caplog.text


def test_half_of_a_cache_is_made_anew(tmp_path, records):
    path = tmp_path / "set.class_index.npz"
    first = class_pixel_counts("set", records, RULE, tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    np.testing.assert_array_equal(class_pixel_counts("set", records, RULE, tmp_path), first)


def test_failed_count_leaves_no_file(tmp_path, records):
    strict = LabelRule.build("set", {0: 0}, num_classes=3)
    with pytest.raises(ValueError, match="outside the classes of set"):
        class_pixel_counts("set", records, strict, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_rendered_labels_are_indexed(tmp_path, reads, monkeypatch):
    records = [
        {
            "file_name": f"s/{i}",
            "render": {"seed": 1, "index": i, "height": 64, "width": 128, "anomalies": False},
        }
        for i in range(2)
    ]
    rule = LabelRule.build("streets", None, num_classes=10)
    counts = class_pixel_counts("streets", records, rule, tmp_path)
    assert counts.shape == (2, 10) and (counts.sum(axis=1) <= 64 * 128).all() and counts.any()
    class_pixel_counts("streets", records, rule, tmp_path)
    assert len(reads) == 2
    monkeypatch.setattr(class_index, "RENDERER_VERSION", -1)
    class_pixel_counts("streets", records, rule, tmp_path)
    assert len(reads) == 4


def test_other_ranks_wait_for_rank_zero(tmp_path, records, monkeypatch):
    """Rank 1 reads nothing and takes what rank 0 gathers."""
    counts = np.arange(12).reshape(4, 3)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda data: [counts, data])
    assert (
        class_pixel_counts("set", [{"file_name": "", "sem_seg_file_name": "not there"}], RULE, tmp_path)
        is counts
    )
    assert not list(tmp_path.glob("*.npz"))
