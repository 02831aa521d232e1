"""Fishyscapes: labels over LostAndFound frames, and the images of Static made from Cityscapes."""

from __future__ import annotations

import logging
import zipfile

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import (
    LayoutError,
    MissingDataError,
    dataset_status,
    get_records,
    read_image,
    read_label,
)
from gmm_anomaly.data.prepare_fishyscapes import main, prepare_static, read_overlay, static_image

FRAMES = ("04_Maurener_Weg_8_000000_000030", "13_Elly_Beinhorn_Str_000000_000210")
CITY_FRAMES = ("frankfurt_000001_046504", "munster_000012_000019")
LABEL = np.resize(np.array([0, 1, 255], np.uint8), (10, 14))


@pytest.fixture
def masks(datasets_root, save_image):
    """Two masks, over a test and a train frame of LostAndFound."""
    for frame, split in zip(FRAMES, ("test", "train"), strict=True):
        scene = frame.rsplit("_", 2)[0]
        for number in range(2):
            name = frame if number == 0 else frame[:-1] + "9"
            save_image(
                datasets_root / f"lost_and_found/leftImg8bit/{split}/{scene}/{name}_leftImg8bit.png",
                np.full((10, 14, 3), number, np.uint8),
            )
    for number, frame in enumerate(FRAMES):
        save_image(datasets_root / f"fishyscapes_lostandfound/{number:04d}_{frame}_labels.png", LABEL)
    return datasets_root / "fishyscapes_lostandfound"


def test_lost_and_found(masks, datasets_root, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = get_records("fishyscapes_lost_and_found")
    assert "2 of 100 frames" in caplog.text
    scene = datasets_root / "lost_and_found/leftImg8bit/test/04_Maurener_Weg_8"
    assert first["file_name"] == str(scene / f"{FRAMES[0]}_leftImg8bit.png")
    assert first["image_id"] == f"0000_{FRAMES[0]}"
    assert second["file_name"].split("/")[-3:-1] == ["train", "13_Elly_Beinhorn_Str"]
    metadata = MetadataCatalog.get("fishyscapes_lost_and_found")
    np.testing.assert_array_equal(read_label(first, metadata), LABEL)
    assert metadata.protocol == "fishyscapes" and metadata.component_track is None


def test_lost_and_found_needs_both_folders(masks, datasets_root):
    def found():
        return next(s.found for s in dataset_status() if s.name == "fishyscapes_lost_and_found")

    assert found()
    (datasets_root / "lost_and_found").rename(datasets_root / "elsewhere")
    assert not found()
    with pytest.raises(MissingDataError) as caught:
        get_records("fishyscapes_lost_and_found")
    for part in (
        "images of LostAndFound",
        str(datasets_root / "lost_and_found"),
        "GMM_ANOMALY_LOST_AND_FOUND",
    ):
        assert part in str(caught.value)


def test_mask_of_an_unknown_frame(masks, save_image):
    save_image(masks / "0002_04_Maurener_Weg_8_000009_000990_labels.png", LABEL)
    with pytest.raises(LayoutError, match="0002_.* belongs to the frame 04_Maurener_Weg_8_000009_000990"):
        get_records("fishyscapes_lost_and_found")


def test_label_without_a_number(masks, save_image):
    save_image(masks / "stray_labels.png", LABEL)
    with pytest.raises(LayoutError, match="stray_labels.png is not named NUMBER_FRAME_labels.png"):
        get_records("fishyscapes_lost_and_found")


def test_label_value_2_is_not_of_the_benchmark(masks, save_image):
    save_image(masks / f"0000_{FRAMES[0]}_labels.png", np.full((10, 14), 2, np.uint8))
    with pytest.raises(ValueError, match="label value 2.*allowed: 0-1, 255"):
        read_label(
            get_records("fishyscapes_lost_and_found")[0], MetadataCatalog.get("fishyscapes_lost_and_found")
        )


# ---- Static ----


def overlay(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-300, 300, (10, 14, 3)).astype(np.int16)


def frame(number: int) -> np.ndarray:
    return np.random.default_rng(50 + number).integers(0, 256, (10, 14, 3)).astype(np.uint8)


@pytest.fixture
def static(datasets_root, save_image):
    """Two frames of version 3 as the archive unpacks them, and Cityscapes."""
    root = datasets_root / "fs_val_v3"
    for number, name in enumerate(CITY_FRAMES):
        save_image(root / f"{number:04d}_{name}_labels.png", LABEL)
        np.savez_compressed(root / f"{number:04d}_{name}_rgb.npz", rgb=overlay(number))
        city = name.split("_")[0]
        path = datasets_root / f"cityscapes/leftImg8bit/val/{city}/{name}_leftImg8bit.png"
        save_image(path, frame(number))
    return root


def test_static_image_adds_and_clips():
    base = np.array([[[0, 100, 255]], [[10, 20, 30]]], np.uint8)
    added = np.array([[[-5, 50, 5]], [[245, -20, 300]]], np.int64)
    assert static_image(base, added).tolist() == [[[0, 150, 255]], [[255, 0, 255]]]


def test_static_says_to_make_its_images(static):
    with pytest.raises(
        LayoutError, match="not made yet; run python datasets/prepare_fishyscapes_static.py --version 3"
    ):
        get_records("fishyscapes_static_v3")


def test_prepared_static(static, capsys):
    assert main(["--version", "3"]) == 0
    assert "2 images made" in capsys.readouterr().out
    records = get_records("fishyscapes_static_v3")
    assert [record["image_id"] for record in records] == [
        f"{n:04d}_{name}" for n, name in enumerate(CITY_FRAMES)
    ]
    for number, record in enumerate(records):
        expected = (frame(number).astype(int) + overlay(number)).clip(0, 255)
        np.testing.assert_array_equal(read_image(record, "RGB"), expected)
        np.testing.assert_array_equal(read_label(record, MetadataCatalog.get("fishyscapes_static_v3")), LABEL)
    (static / "images" / f"0001_{CITY_FRAMES[1]}.png").unlink()
    with pytest.raises(LayoutError, match=f"1 of 2 images are not made, first 0001_{CITY_FRAMES[1]}"):
        get_records("fishyscapes_static_v3")
    for version, count in ((1, 30), (2, None), (3, None)):
        metadata = MetadataCatalog.get(f"fishyscapes_static_v{version}")
        assert (metadata.expected_count, metadata.protocol) == (count, "fishyscapes")


def test_preparation_resumes_and_checks(static, datasets_root, save_image):
    cities = datasets_root / "cityscapes"
    assert prepare_static(static, cities) == 2
    finished = static / "images" / f"0000_{CITY_FRAMES[0]}.png"
    written = finished.stat().st_mtime_ns
    (static / "images" / f"0001_{CITY_FRAMES[1]}.png").unlink()
    assert prepare_static(static, cities) == 1
    assert finished.stat().st_mtime_ns == written
    assert prepare_static(static, cities, check=True) == 0
    save_image(finished, np.zeros((10, 14, 3), np.uint8))
    with pytest.raises(ValueError, match="0000_.*png is not the sum of its frame and overlay"):
        prepare_static(static, cities, check=True)


def test_interrupted_preparation_leaves_no_half_image(static, datasets_root, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", interrupted)
    assert main(["--version", "3"]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert not list((static / "images").iterdir())
    monkeypatch.undo()
    assert prepare_static(static, datasets_root / "cityscapes") == 2


def test_fractions_of_an_overlay_are_cut_off(tmp_path):
    """As the benchmark's code does."""
    path = tmp_path / "0000_x_rgb.npz"
    np.savez(path, rgb=np.array([[[-1.9, 0.5, 254.9]]]))
    assert read_overlay(path).tolist() == [[[-1, 0, 254]]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "no frame",
            r"no Cityscapes frame .*munster/munster_000012_000019_leftImg8bit.png; set GMM_ANOMALY_CITYSC",
        ),
        ("no overlay", r"0001_.*labels.png needs one overlay of the same number \(\*_rgb.npz\), found 0"),
        ("two overlays", "found 2"),
        ("broken overlay", "rgb.npz is no overlay with the key 'rgb'"),
        ("other key", "rgb.npz is no overlay with the key 'rgb'"),
        ("flat overlay", r"expected numbers of shape \(height, width, 3\), found int16 \(10, 14\)"),
        ("undefined overlay", "overlay holds NaN or infinities"),
        ("other size", "are of different sizes: overlay 14 x 9, frame 14 x 10, label 14 x 10"),
    ],
)
def test_preparation_names_what_is_wrong(static, datasets_root, capsys, damage, message):
    import re

    path = static / f"0001_{CITY_FRAMES[1]}_rgb.npz"
    if damage == "no frame":
        (datasets_root / "cityscapes/leftImg8bit/val/munster/munster_000012_000019_leftImg8bit.png").unlink()
    elif damage == "no overlay":
        path.unlink()
    elif damage == "two overlays":
        np.savez(static / "0001_other_rgb.npz", rgb=overlay(1))
    elif damage == "broken overlay":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other key":
        np.savez(path, image=overlay(1))
    elif damage == "flat overlay":
        np.savez(path, rgb=overlay(1)[:, :, 0])
    elif damage == "undefined overlay":
        np.savez(path, rgb=np.full((10, 14, 3), np.nan))
    else:
        np.savez(path, rgb=overlay(1)[:9])
    assert main(["--version", "3"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_preparation_unpacks_the_archive(static, datasets_root, tmp_path, capsys):
    archive = tmp_path / "fs_val_v2.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        for path in static.iterdir():
            stored.write(path, f"fs_val_v2/{path.name}")
    assert main(["--version", "2", "--archive", str(archive)]) == 0
    assert len(get_records("fishyscapes_static_v2")) == 2


def test_preparation_without_a_download(capsys):
    assert main(["--version", "1"]) == 1
    assert "fs_val_v1; set GMM_ANOMALY_FISHYSCAPES_STATIC_V1" in capsys.readouterr().err
