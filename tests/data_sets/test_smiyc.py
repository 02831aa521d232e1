"""The tracks of SegmentMeIfYouCan: which frames belong to which split, and what their labels mean."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_label
from gmm_anomaly.data.road_obstacle21 import in_split

ANOMALY_FRAMES = ("validation0000", "validation0009", "zebra0000", "cones0003")
OBSTACLE_FRAMES = (
    *("validation_1", "validation_18", "validation_20", "validation_30", "validation_40"),
    *("curvy-street_3", "greyasphalt_12", "darkasphalt2_dog_5"),
    *("snowstorm1_00_02_34", "snowstorm2_7", "driveway_9"),
)


def make_track(root, frames, extension, save_image):
    for frame in frames:
        save_image(root / f"images/{frame}{extension}", np.zeros((7, 13, 3), np.uint8))
        if frame.startswith("validation"):
            label = np.resize(np.array([0, 1, 255, 7], np.uint8), (7, 13))
            save_image(root / f"labels_masks/{frame}_labels_semantic.png", label)
            save_image(
                root / f"labels_masks/{frame}_labels_semantic_color.png", np.zeros((7, 13, 3), np.uint8)
            )


@pytest.fixture
def anomaly_track(datasets_root, save_image):
    root = datasets_root / "dataset_AnomalyTrack"
    make_track(root, ANOMALY_FRAMES, ".jpg", save_image)
    return root


@pytest.fixture
def obstacle_track(datasets_root, save_image):
    root = datasets_root / "dataset_ObstacleTrack"
    make_track(root, OBSTACLE_FRAMES, ".webp", save_image)
    return root


def ids(name):
    return [record["image_id"] for record in get_records(name)]


def test_splits_of_the_anomaly_track(anomaly_track):
    assert ids("road_anomaly21_validation") == ["validation0000", "validation0009"]
    assert ids("road_anomaly21_test") == ["cones0003", "zebra0000"]
    assert ids("road_anomaly21_all") == sorted(ANOMALY_FRAMES)


def test_splits_of_the_obstacle_track(obstacle_track):
    assert ids("road_obstacle21_validation") == [f"validation_{number}" for number in (1, 18, 20, 30, 40)]
    assert ids("road_obstacle21_test") == ["curvy-street_3", "darkasphalt2_dog_5", "greyasphalt_12"]
    assert ids("road_obstacle21_all") == sorted(OBSTACLE_FRAMES)


def test_validation_frames_that_the_benchmark_leaves_out(obstacle_track, save_image):
    numbers = [number for number in range(1, 41) if in_split(f"validation_{number}", "validation")]
    assert numbers == [*range(1, 19), 20, *range(30, 41)]
    assert len(numbers) == 30
    make_track(obstacle_track, ["validation_19", "validation_25"], ".webp", save_image)
    assert "validation_19" not in ids("road_obstacle21_validation")
    assert "validation_25" not in ids("road_obstacle21_validation")


@pytest.mark.parametrize("name", ["road_anomaly21", "road_obstacle21"])
def test_labels(anomaly_track, obstacle_track, name):
    metadata = MetadataCatalog.get(f"{name}_validation")
    label = read_label(get_records(f"{name}_validation")[0], metadata)
    np.testing.assert_array_equal(label, np.resize(np.array([0, 1, 255, 255], np.uint8), (7, 13)))
    assert metadata.protocol == "smiyc" and metadata.evaluator_type == "anomaly"


def test_tracks():
    assert MetadataCatalog.get("road_anomaly21_validation").component_track == "anomaly"
    assert MetadataCatalog.get("road_obstacle21_all").component_track == "obstacle"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("road_anomaly21_validation", 10),
        ("road_anomaly21_test", 100),
        ("road_anomaly21_all", 110),
        ("road_obstacle21_validation", 30),
        ("road_obstacle21_test", 327),
        ("road_obstacle21_all", 442),
    ],
)
def test_counts(anomaly_track, obstacle_track, caplog, name, count):
    with caplog.at_level(logging.WARNING):
        found = len(get_records(name))
    assert f"{name}: {found} of {count} frames" in caplog.text


def test_withheld_labels(anomaly_track, obstacle_track):
    for name in ("road_anomaly21", "road_obstacle21"):
        records = get_records(f"{name}_test")
        assert not any("sem_seg_file_name" in record for record in records)
        with pytest.raises(ValueError, match=f"{name}_test: the label of .* is withheld"):
            read_label(records[0], MetadataCatalog.get(f"{name}_test"))
        labelled = [r["image_id"] for r in get_records(f"{name}_all") if "sem_seg_file_name" in r]
        assert labelled and all(frame.startswith("validation") for frame in labelled)


def test_test_frames_need_no_labels_folder(anomaly_track):
    for path in (anomaly_track / "labels_masks").iterdir():
        path.unlink()
    (anomaly_track / "labels_masks").rmdir()
    assert len(get_records("road_anomaly21_test")) == 2
    with pytest.raises(LayoutError, match="road_anomaly21_validation: .*lacks labels_masks"):
        get_records("road_anomaly21_validation")


def test_validation_frame_without_label(anomaly_track):
    (anomaly_track / "labels_masks/validation0009_labels_semantic.png").unlink()
    with pytest.raises(LayoutError, match="validation0009.jpg"):
        get_records("road_anomaly21_validation")
