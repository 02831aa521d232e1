"""StreetHazards: three ways to list its frames, one meaning of its labels."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_label

TREE = (
    ("train", "training", "t1-2-3", (2, 10)),
    ("train", "validation", "t4", (1,)),
    ("test", "test", "t5", (300,)),
    ("test", "test", "t6", (300,)),
)
RAW = np.resize(np.arange(1, 15, dtype=np.uint8), (8, 15))


@pytest.fixture
def root(datasets_root, save_image):
    root = datasets_root / "StreetHazards"
    for folder, split, town, numbers in TREE:
        for number in numbers:
            save_image(root / f"{folder}/images/{split}/{town}/{number}.png", np.zeros((8, 15, 3), np.uint8))
            raw = RAW if folder == "test" else np.minimum(RAW, 13)
            save_image(root / f"{folder}/annotations/{split}/{town}/{number}.png", raw)
    return root


def write_list(path, entries, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [
        {"dbName": "StreetHazards", "width": 1280, "height": 720, "fpath_img": image, "fpath_segm": label}
        for image, label in entries
    ]
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))


def ids(name):
    return [record["image_id"] for record in get_records(name)]


def test_folders(root):
    assert ids("street_hazards_train") == ["t1-2-3__10", "t1-2-3__2"]
    assert ids("street_hazards_validation") == ["t4__1"]
    assert ids("street_hazards_test") == ids("street_hazards_test_closed_set") == ["t5__300", "t6__300"]


@pytest.mark.parametrize("lines", [False, True])
def test_lists_of_the_benchmarks_code_lie_in_the_root(root, lines):
    for name, folder, town in (
        ("training", "train", "t1-2-3"),
        ("validation", "train", "t4"),
        ("test", "test", "t6"),
    ):
        number = {"training": 2, "validation": 1, "test": 300}[name]
        entry = tuple(f"{folder}/{kind}/{name}/{town}/{number}.png" for kind in ("images", "annotations"))
        write_list(root / f"{name}.odgt", [entry], lines)
    assert ids("street_hazards_train") == ["t1-2-3__2"]
    assert ids("street_hazards_validation") == ["t4__1"]
    assert ids("street_hazards_test") == ["t6__300"]


def test_lists_beside_the_splits_are_relative_to_them(root, save_image):
    save_image(root / "validation/images/validation/t4/7.png", np.zeros((8, 15, 3), np.uint8))
    save_image(root / "validation/annotations/validation/t4/7.png", np.minimum(RAW, 13))
    write_list(
        root / "validation/validation.odgt",
        [("images/validation/t4/7.png", "annotations/validation/t4/7.png")],
    )
    write_list(root / "test/test.odgt", [("images/test/t5/300.png", "annotations/test/t5/300.png")])
    assert ids("street_hazards_validation") == ["t4__7"]
    assert ids("street_hazards_test") == ["t5__300"]
    assert len(ids("street_hazards_train")) == 2


def test_anomaly_labels(root):
    label = read_label(get_records("street_hazards_test")[0], MetadataCatalog.get("street_hazards_test"))
    np.testing.assert_array_equal(label, RAW == 14)
    metadata = MetadataCatalog.get("street_hazards_test")
    assert (metadata.evaluator_type, metadata.protocol) == ("anomaly", "per_image")
    assert len(metadata.stuff_classes) == 13


def test_closed_set_labels(root):
    for name in ("street_hazards_train", "street_hazards_test_closed_set"):
        metadata = MetadataCatalog.get(name)
        raw = RAW if "test" in name else np.minimum(RAW, 13)
        label = read_label(get_records(name)[0], metadata)
        np.testing.assert_array_equal(label, np.where(raw == 14, 255, raw - 1))
        assert metadata.stuff_classes[0] == "unlabeled" and metadata.stuff_classes[12] == "traffic sign"


def test_training_frames_have_no_anomaly_and_no_zero(root, save_image):
    path = root / "train/annotations/training/t1-2-3/10.png"
    for value in (0, 14):
        save_image(path, np.full((8, 15), value, np.uint8))
        with pytest.raises(ValueError, match=rf"label value {value} .*allowed: 1-13, 255"):
            read_label(get_records("street_hazards_train")[0], MetadataCatalog.get("street_hazards_train"))


def test_counts(root, caplog):
    with caplog.at_level(logging.WARNING):
        for split in ("train", "validation", "test"):
            get_records(f"street_hazards_{split}")
    for text in ("train: 2 of 5125", "validation: 1 of 1031", "test: 2 of 1500"):
        assert f"street_hazards_{text} frames" in caplog.text


def test_missing_annotation(root):
    (root / "test/annotations/test/t6/300.png").unlink()
    with pytest.raises(LayoutError, match=r"street_hazards_test: 1 image \(.*t6/300.png\) without a label"):
        get_records("street_hazards_test")


def test_lists_that_cannot_be(root):
    (root / "test.odgt").write_text("{}")
    with pytest.raises(LayoutError, match=r"test.odgt is not a list of \{fpath_img, fpath_segm\}"):
        get_records("street_hazards_test")
    write_list(root / "test.odgt", [("test/images/test/t5/301.png", "test/annotations/test/t5/301.png")])
    with pytest.raises(
        LayoutError, match="test.odgt lists .*t5/301.png, which is not there; paths are relative to"
    ):
        get_records("street_hazards_test")


def test_only_one_of_the_archives(root):
    (root / "test").rename(root / "unpacked elsewhere")
    assert ids("street_hazards_train")
    with pytest.raises(
        LayoutError, match="street_hazards_test: .*StreetHazards lacks test.*streethazards_test.tar"
    ):
        get_records("street_hazards_test")
