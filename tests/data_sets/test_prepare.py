"""The preparation commands: what they make, that they resume, what they say of what is wrong."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image
from scipy.io import savemat

from gmm_anomaly.data import get_records, read_image, read_label
from gmm_anomaly.data.prepare import PREPARED_VALUES, convert_labels, main

ROOT = Path(__file__).parents[2]
COMMANDS = {"coco_stuff10k": [], "fishyscapes_static": ["--version", "3"], "lost_and_found": []}

# Some ids of COCO-Stuff on both sides of the unused ones, and their values in MMSegmentation's files.
IDS = {0: 0, 1: 1, 11: 11, 13: 12, 25: 24, 27: 25, 28: 26, 31: 27, 67: 61, 70: 62, 90: 80, 92: 81, 182: 171}
ORIGINAL = np.resize(np.array(list(IDS), np.uint8), (10, 14))
CONVERTED = np.resize(np.array(list(IDS.values()), np.uint8), (10, 14))
COCO = ("COCO_train2014_000000000077", "COCO_train2014_000000000064")
CITY = ("frankfurt_000001_046504", "munster_000012_000019")
OVERLAY = f"fs_val_v3/0001_{CITY[1]}_rgb.npz"
LOST = ("04_Maurener_Weg_8_000000_000030", "01_Hanns_Klemm_Str_45_000000_000190")
RAW = np.resize(np.arange(256, dtype=np.uint8), (16, 17))
OBSTACLES = np.select([RAW == 1, (RAW >= 2) & (RAW <= 200)], [0, 1], 255)
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (2, 10, 14, 3), np.uint8)
OVERLAYS = RNG.uniform(-300, 300, (2, 10, 14, 3)).astype(np.float32)  # fractions are cut off


@pytest.fixture
def downloads(datasets_root, save_image):
    """The downloads of all three as they are unpacked, two frames each, and Cityscapes."""
    coco = datasets_root / "coco_stuff10k"
    (coco / "annotations").mkdir(parents=True)
    (coco / "imageLists").mkdir()
    for split, name in zip(("train", "test"), COCO, strict=True):
        (coco / f"imageLists/{split}.txt").write_text(name + "\n")
        save_image(coco / f"images/{name}.jpg", np.full((10, 14), 90, np.uint8))
        savemat(coco / f"annotations/{name}.mat", {"S": ORIGINAL, "names": np.array(["a"], object)})
    for number, name in enumerate(CITY):
        static = datasets_root / f"fs_val_v3/{number:04d}_{name}"
        save_image(f"{static}_labels.png", np.resize(np.array([0, 1, 255], np.uint8), (10, 14)))
        np.savez_compressed(f"{static}_rgb.npz", rgb=OVERLAYS[number])
        city = datasets_root / "cityscapes/leftImg8bit/val" / name.split("_")[0]
        save_image(city / f"{name}_leftImg8bit.png", FRAMES[number])
    for split, name in zip(("test", "train"), LOST, strict=True):
        folder = f"{split}/{name.rsplit('_', 2)[0]}/{name}"
        root = datasets_root / "lost_and_found"
        save_image(root / f"leftImg8bit/{folder}_leftImg8bit.png", np.zeros((*RAW.shape, 3), np.uint8))
        save_image(root / f"gtCoarse/{folder}_gtCoarse_labelIds.png", RAW)
    return datasets_root


def made(root: Path, data_set: str) -> list[Path]:
    """The two files that a command makes."""
    patterns = {
        "coco_stuff10k": "coco_stuff10k/annotations/*2014/*_labelTrainIds.png",
        "fishyscapes_static": "fs_val_v3/images/*.png",
        "lost_and_found": "lost_and_found/labels_masks/*/*/*_labels_semantic.png",
    }
    return sorted(root.glob(patterns[data_set]))


@pytest.mark.parametrize("data_set", COMMANDS)
def test_commands_make_resume_and_leave_nothing_half(downloads, data_set, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", interrupted)
    assert main(data_set, COMMANDS[data_set]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert not made(downloads, data_set) and not list(downloads.rglob("*.partial"))
    monkeypatch.undo()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(downloads))
    assert main(data_set, COMMANDS[data_set]) == 0
    assert "2 files made" in capsys.readouterr().out
    first, second = made(downloads, data_set)
    written = first.stat().st_mtime_ns
    second.unlink()
    assert main(data_set, COMMANDS[data_set]) == 0
    assert "1 files made" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written and second.is_file()


def test_what_is_made(downloads):
    for data_set, arguments in COMMANDS.items():
        assert main(data_set, arguments) == 0
    for split in ("train", "test"):
        (record,) = get_records(f"coco_stuff10k_{split}")
        label = read_label(record, MetadataCatalog.get(f"coco_stuff10k_{split}"))
        np.testing.assert_array_equal(label, np.where(CONVERTED == 0, 255, CONVERTED - 1))
        assert read_image(record, "RGB").shape == (10, 14, 3)
    for number, record in enumerate(get_records("fishyscapes_static_v3")):
        expected = (FRAMES[number].astype(int) + OVERLAYS[number].astype(int)).clip(0, 255)
        np.testing.assert_array_equal(read_image(record, "RGB"), expected)
    for path in made(downloads, "lost_and_found"):
        assert np.array_equal(np.asarray(Image.open(path)), OBSTACLES)
    assert made(downloads, "lost_and_found")[0].parts[-3:-1] == ("test", "04_Maurener_Weg_8")


def test_ids_of_coco_stuff():
    assert {original: PREPARED_VALUES[original] for original in IDS} == IDS
    assert sorted(PREPARED_VALUES.values()) == list(range(172))
    np.testing.assert_array_equal(convert_labels(ORIGINAL, "f"), CONVERTED)
    with pytest.raises(ValueError, match=r"f: the ids \[12, 183, 300\] are not COCO-Stuff's; is this"):
        convert_labels(np.array([[1, 12], [183, 300]], np.uint16), "f")


@pytest.mark.parametrize(
    ("data_set", "path", "damage", "message"),
    [
        ("coco_stuff10k", "coco_stuff10k", None, "coco_stuff10k; set GMM_ANOMALY_COCO_STUFF10K"),
        ("coco_stuff10k", "coco_stuff10k/imageLists/test.txt", None, "no .*test.txt; unpack cocostuff-10k"),
        ("coco_stuff10k", f"coco_stuff10k/images/{COCO[1]}.jpg", None, "no .*64.jpg, which imageLists names"),
        ("coco_stuff10k", f"coco_stuff10k/annotations/{COCO[1]}.mat", None, "64.mat, which imageLists names"),
        ("coco_stuff10k", f"coco_stuff10k/annotations/{COCO[1]}.mat", b"MATLAB 5.0", "64.mat cannot be read"),
        ("fishyscapes_static", "fs_val_v3", None, "fs_val_v3; set GMM_ANOMALY_FISHYSCAPES_STATIC_V3"),
        (
            "fishyscapes_static", f"cityscapes/leftImg8bit/val/munster/{CITY[1]}_leftImg8bit.png", None,
            r"no Cityscapes frame .*munster_000012_000019_leftImg8bit.png; set GMM_ANOMALY_CITYSCAPES",
        ),
        ("fishyscapes_static", OVERLAY, None, r"one overlay 0001_\*rgb.npz, found 0"),
        ("fishyscapes_static", OVERLAY, b"PK\x03\x04", "0001_.*rgb.npz: expected"),
        ("fishyscapes_static", OVERLAY, {"x": OVERLAYS[1]}, "with the key 'rgb'"),
        ("fishyscapes_static", OVERLAY, {"rgb": OVERLAYS[1][:9]}, r"\(9, 14, 3\)"),
        ("fishyscapes_static", OVERLAY, {"rgb": OVERLAYS[1] * np.nan}, "or NaN"),
        ("lost_and_found", "lost_and_found/leftImg8bit", None, "has neither leftImg8bit/train nor"),
        (
            "lost_and_found",
            f"lost_and_found/gtCoarse/test/04_Maurener_Weg_8/{LOST[0]}_gtCoarse_labelIds.png",
            None, "1 image .*000030_leftImg8bit.png.* without a label",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(downloads, capsys, data_set, path, damage, message):
    path = downloads / path
    if isinstance(damage, dict):
        np.savez(path, **damage)
    elif damage is not None:
        path.write_bytes(damage)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert main(data_set, COMMANDS[data_set]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_archives_are_unpacked_without_their_folders(downloads, tmp_path, capsys):
    archive = tmp_path / "fs_val_v2.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stored:
        for path in (downloads / "fs_val_v3").iterdir():
            stored.write(path, f"fs_val_v2/{path.name}")
        stored.writestr("../outside_labels.png", b"")
        stored.writestr("fs_val_v2/notes.txt", b"")
    names = {path.name for path in (downloads / "fs_val_v3").iterdir()}
    arguments = ["--version", "2", "--archive", str(archive)]
    assert main("fishyscapes_static", arguments) == 1  # of another name than the benchmark's
    assert "outside_labels.png is not named NUMBER_FRAME" in capsys.readouterr().err
    assert {path.name for path in (downloads / "fs_val_v2").iterdir()} == names | {"outside_labels.png"}
    archive.write_bytes(b"PK\x03\x04 cut off")
    assert main("fishyscapes_static", arguments) == 1
    assert "fs_val_v2.zip is no complete zip archive" in capsys.readouterr().err
    archive.unlink()
    assert main("fishyscapes_static", arguments) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("data_set", COMMANDS)
def test_scripts_are_thin(data_set, monkeypatch, capsys):
    """Run in this process: they hand over to the tested ``main``, with its exit status."""
    monkeypatch.setattr(sys, "argv", [data_set, *COMMANDS[data_set]])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / f"datasets/prepare_{data_set}.py"), run_name="__main__")
    assert caught.value.code == 1
    assert "there is no folder" in capsys.readouterr().err
