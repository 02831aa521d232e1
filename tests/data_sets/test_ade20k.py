"""ADE20K: the archive's annotations, wherever Detectron2 or MMSegmentation want them unpacked."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_label

RAW = np.resize(np.arange(151, dtype=np.uint8), (12, 17))


@pytest.fixture(params=["ADEChallengeData2016", "ade/ADEChallengeData2016"])
def root(request, datasets_root, save_image):
    root = datasets_root / request.param
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save_image(root / f"images/{folder}/{name}.jpg", np.zeros((12, 17, 3), np.uint8))
        save_image(root / f"annotations/{folder}/{name}.png", RAW)
    # What Detectron2's preparation adds; its values are other ones, so it is not read.
    save_image(root / "annotations_detectron2/training/ADE_train_00000001.png", RAW - 1)
    (root / "objectInfo150.txt").write_text("")
    return root


def test_records_and_labels(root, caplog):
    for split, name, count in (("train", "ADE_train_00000001", 20210), ("val", "ADE_val_00000001", 2000)):
        with caplog.at_level(logging.WARNING):
            (record,) = get_records(f"ade20k_{split}")
        assert f"ade20k_{split}: 1 of {count} frames" in caplog.text
        assert record["image_id"] == name
        label = read_label(record, MetadataCatalog.get(f"ade20k_{split}"))
        np.testing.assert_array_equal(label, np.where(RAW == 0, 255, RAW - 1))


def test_classes():
    metadata = MetadataCatalog.get("ade20k_train")
    assert len(metadata.stuff_classes) == 150
    assert (metadata.stuff_classes[0], metadata.stuff_classes[149]) == ("wall", "flag")


def test_missing_label(root):
    (root / "annotations/training/ADE_train_00000001.png").unlink()
    with pytest.raises(LayoutError, match="ADE_train_00000001.jpg.* without a label"):
        get_records("ade20k_train")


def test_value_151(root, save_image):
    save_image(root / "annotations/validation/ADE_val_00000001.png", np.full((12, 17), 151, np.uint8))
    with pytest.raises(ValueError, match="label value 151.*allowed: 0-150, 255"):
        read_label(get_records("ade20k_val")[0], MetadataCatalog.get("ade20k_val"))
