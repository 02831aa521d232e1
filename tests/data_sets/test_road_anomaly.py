"""Road Anomaly: label folders beside the frames."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_label

NAMES = ("animals01_Guiding_Horses", "zebra02")
RAW = np.resize(np.array([0, 2], np.uint8), (9, 13))


@pytest.fixture
def root(datasets_root, save_image):
    root = datasets_root / "RoadAnomaly_jpg"
    for name in NAMES:
        save_image(root / f"frames/{name}.jpg", np.zeros((9, 13, 3), np.uint8))
        folder = root / f"frames/{name}.labels"
        save_image(folder / "labels_semantic.png", RAW)
        save_image(folder / "labels_instance.png", RAW)
        save_image(folder / "labels_semantic_color.png", np.zeros((9, 13, 3), np.uint8))
    (root / "frame_list.json").write_text(json.dumps([f"{name}.jpg" for name in NAMES]))
    return root


def test_records(root, caplog):
    with caplog.at_level(logging.WARNING):
        records = get_records("road_anomaly")
    assert "road_anomaly: 2 of 60 frames" in caplog.text
    assert [record["image_id"] for record in records] == list(NAMES)
    np.testing.assert_array_equal(read_label(records[0], MetadataCatalog.get("road_anomaly")), RAW // 2)


def test_value_1_is_refused_because_evaluators_disagree_on_it(root, save_image):
    save_image(root / f"frames/{NAMES[0]}.labels/labels_semantic.png", RAW // 2)
    with pytest.raises(ValueError, match="label value 1 .*allowed: 0, 2, 255"):
        read_label(get_records("road_anomaly")[0], MetadataCatalog.get("road_anomaly"))


def test_missing_label(root):
    (root / f"frames/{NAMES[1]}.labels/labels_semantic.png").unlink()
    with pytest.raises(LayoutError, match=f"{NAMES[1]}.jpg.* without a label"):
        get_records("road_anomaly")


def test_wrong_folder(root):
    (root / "frames").rename(root / "images")
    with pytest.raises(LayoutError, match="road_anomaly: .*RoadAnomaly_jpg lacks frames"):
        get_records("road_anomaly")
