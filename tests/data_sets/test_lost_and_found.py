"""LostAndFound, and the frames that its subset NoKnown leaves out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, get_records, read_label
from gmm_anomaly.data.lost_and_found import EMPTY_LABELS, KNOWN_KINDS


def paths(root, split, frame):
    scene = frame.rsplit("_", 2)[0]
    return (
        root / f"leftImg8bit/{split}/{scene}/{frame}_leftImg8bit.png",
        root / f"gtCoarse/{split}/{scene}/{frame}_gtCoarse_labelIds.png",
    )


@pytest.fixture
def root(datasets_root):
    return datasets_root / "lost_and_found"


@pytest.fixture
def small(root, save_image):
    """One frame a split, with the files that the download has beside them."""
    raw = np.resize(np.arange(256, dtype=np.uint8), (16, 19))
    for split, frame in (
        ("train", "01_Hanns_Klemm_Str_45_000000_000190"),
        ("test", "04_Maurener_Weg_8_000000_000030"),
    ):
        image, label = paths(root, split, frame)
        save_image(image, np.zeros((16, 19, 3), np.uint8))
        save_image(label, raw)
        save_image(label.with_name(f"{frame}_gtCoarse_labelTrainIds.png"), raw)
        save_image(label.with_name(f"{frame}_gtCoarse_color.png"), np.zeros((16, 19, 3), np.uint8))
    return raw


def test_labels(small):
    for split in ("train", "test"):
        (record,) = get_records(f"lost_and_found_{split}")
        expected = np.select([small == 1, (small >= 2) & (small <= 200)], [0, 1], 255)
        np.testing.assert_array_equal(
            read_label(record, MetadataCatalog.get(f"lost_and_found_{split}")), expected
        )


def test_frames_are_named_by_their_id(small):
    (record,) = get_records("lost_and_found_test")
    assert record["image_id"] == "04_Maurener_Weg_8_000000_000030"


def test_counts(small, caplog):
    with caplog.at_level(logging.WARNING):
        get_records("lost_and_found_train"), get_records("lost_and_found_test")
    assert "lost_and_found_train: 1 of 1036 frames" in caplog.text
    assert "lost_and_found_test: 1 of 1203 frames" in caplog.text


def test_missing_label(small, root):
    paths(root, "test", "04_Maurener_Weg_8_000000_000030")[1].unlink()
    with pytest.raises(LayoutError, match="000030_leftImg8bit.png.* without a label"):
        get_records("lost_and_found_test")


def test_no_known_needs_all_test_frames(small):
    with pytest.raises(LayoutError, match="lost_and_found_test_no_known: .*1203 test frames, but .* has 1;"):
        get_records("lost_and_found_test_no_known")


def test_no_known_leaves_out_empty_labels_and_known_kinds(root, monkeypatch):
    """1203 frames of real scenes: 17 fall to their position in the order of ids, the known kinds to their
    names."""
    scenes = (
        "01_Hanns_Klemm_Str_45_000006",
        "01_Hanns_Klemm_Str_45_000007",
        "02_Hanns_Klemm_Str_44_000000",
        # A scene whose name begins like another's: the order is that of ids, not of folders.
        "02_Hanns_Klemm_Str_4_000001",
        "10_Schlossberg_9_000003",
        "10_Schlossberg_9_000004",
        "15_Rechbergstr_Deckenpfronn_000001",
    )
    frames = [f"{scenes[number % len(scenes)]}_{number:06d}" for number in range(1203)]
    for frame in frames:
        for path in paths(root, "test", frame):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    ordered = sorted(frames)
    expected = [
        frame
        for position, frame in enumerate(ordered)
        if position not in EMPTY_LABELS and not any(frame.startswith(known) for known in KNOWN_KINDS)
    ]
    found = [record["image_id"] for record in get_records("lost_and_found_test_no_known")]
    assert found == expected
    assert {frame.rsplit("_", 1)[0] for frame in found} == {scenes[2], scenes[3], scenes[4]}
    # With other names only the 17 positions would be missing.
    monkeypatch.setattr("gmm_anomaly.data.lost_and_found.KNOWN_KINDS", ("no such scene",))
    found = [record["image_id"] for record in get_records("lost_and_found_test_no_known")]
    assert [ordered.index(frame) for frame in ordered if frame not in found] == list(EMPTY_LABELS)
    assert len(EMPTY_LABELS) == 17


def test_no_known_metadata():
    metadata = MetadataCatalog.get("lost_and_found_test_no_known")
    assert (metadata.protocol, metadata.component_track, metadata.expected_count) == (
        "smiyc",
        "obstacle",
        1043,
    )
    assert MetadataCatalog.get("lost_and_found_test").protocol == "pooled"
