"""Cityscapes: labelIds become train ids when they are read."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_label

# Train id of every labelId 0 .. 33, written out from the data set's own definition.
TRAIN_IDS = [
    *(255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255),
    *(5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18),
]


@pytest.fixture
def tree(datasets_root, save_image):
    root = datasets_root / "cityscapes"
    frames = (
        ("train", "aachen", "aachen_000000_000019"),
        ("train", "ulm", "ulm_000093_000019"),
        ("val", "frankfurt", "frankfurt_000001_046504"),
        ("test", "berlin", "berlin_000000_000019"),
    )
    for split, city, frame in frames:
        save_image(
            root / f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", np.zeros((9, 17, 3), np.uint8)
        )
        labels = np.resize(np.arange(34, dtype=np.uint8), (9, 17))
        folder = root / f"gtFine/{split}/{city}"
        save_image(folder / f"{frame}_gtFine_labelIds.png", labels)
        save_image(folder / f"{frame}_gtFine_instanceIds.png", labels)
        save_image(folder / f"{frame}_gtFine_color.png", np.zeros((9, 17, 4), np.uint8))
        (folder / f"{frame}_gtFine_polygons.json").write_text("{}")
    return root


def test_records(tree):
    records = get_records("cityscapes_train")
    assert [record["image_id"] for record in records] == ["aachen_000000_000019", "ulm_000093_000019"]
    stem = "aachen/aachen_000000_000019"
    assert records[0]["file_name"] == str(tree / f"leftImg8bit/train/{stem}_leftImg8bit.png")
    assert records[0]["sem_seg_file_name"] == str(tree / f"gtFine/train/{stem}_gtFine_labelIds.png")


def test_label_ids_become_train_ids(tree):
    (record,) = get_records("cityscapes_val")
    label = read_label(record, MetadataCatalog.get("cityscapes_val"))
    np.testing.assert_array_equal(label, np.resize(np.array(TRAIN_IDS, np.uint8), (9, 17)))


def test_classes(tree):
    metadata = MetadataCatalog.get("cityscapes_val")
    detectron2 = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert metadata.stuff_classes == detectron2.stuff_classes
    assert metadata.stuff_colors[10] == [70, 130, 180]  # sky


def test_test_labels_are_withheld(tree):
    (record,) = get_records("cityscapes_test")
    assert "sem_seg_file_name" not in record
    with pytest.raises(ValueError, match="cityscapes_test: the label of .*berlin.* is withheld"):
        read_label(record, MetadataCatalog.get("cityscapes_test"))


def test_missing_label(tree):
    (tree / "gtFine/val/frankfurt/frankfurt_000001_046504_gtFine_labelIds.png").unlink()
    with pytest.raises(
        LayoutError, match=r"cityscapes_val: 1 image \(.*046504_leftImg8bit.png\) without a label"
    ):
        get_records("cityscapes_val")


def test_label_id_that_does_not_exist(tree, save_image):
    path = tree / "gtFine/val/frankfurt/frankfurt_000001_046504_gtFine_labelIds.png"
    save_image(path, np.full((9, 17), 34, np.uint8))
    with pytest.raises(ValueError, match=r"label value 34 \(153 pixels\).*allowed: 0-33, 255"):
        read_label(get_records("cityscapes_val")[0], MetadataCatalog.get("cityscapes_val"))
