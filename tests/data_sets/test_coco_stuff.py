"""COCO-Stuff 10k: the prepared layout, and its preparation from Matlab files."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image
from scipy.io import savemat

from gmm_anomaly.data import LayoutError, get_records, read_image, read_label
from gmm_anomaly.data.coco_stuff import PREPARED_VALUES
from gmm_anomaly.data.prepare_coco_stuff import convert_labels, main, prepare

NAMES = {
    "train": ("COCO_train2014_000000000077", "COCO_train2014_000000000149"),
    "test": ("COCO_train2014_000000000064",),
}
# Some ids on both sides of the unused ones, and their values in MMSegmentation's files.
IDS = {0: 0, 1: 1, 11: 11, 13: 12, 25: 24, 27: 25, 28: 26, 31: 27, 67: 61, 70: 62, 90: 80, 92: 81, 182: 171}
ORIGINAL = np.resize(np.array(list(IDS), np.uint8), (9, 14))


@pytest.fixture
def download(datasets_root, save_image):
    """The archive's tree: images, Matlab annotations and lists."""
    root = datasets_root / "coco_stuff10k"
    (root / "annotations").mkdir(parents=True)
    (root / "imageLists").mkdir()
    for split, names in NAMES.items():
        (root / f"imageLists/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save_image(root / f"images/{name}.jpg", np.full((9, 14), 90, np.uint8))
            savemat(root / f"annotations/{name}.mat", {"S": ORIGINAL, "names": np.array(["a"], object)})
    return root


def test_ids_and_their_values():
    assert {original: PREPARED_VALUES[original] for original in IDS} == IDS
    assert sorted(PREPARED_VALUES.values()) == list(range(172))
    converted = convert_labels(ORIGINAL, "f")
    np.testing.assert_array_equal(converted, np.resize(np.array(list(IDS.values()), np.uint8), (9, 14)))


def test_unused_ids_are_refused():
    with pytest.raises(
        ValueError, match=r"f: the ids \[12, 183\] are not COCO-Stuff's; is this version 1.1?"
    ):
        convert_labels(np.array([[1, 12], [183, 92]], np.uint8), "f")
    with pytest.raises(ValueError, match="expected .* ids in 0 .. 182"):
        convert_labels(np.array([[300]], np.uint16), "f")


def test_prepared_records_and_labels(download, capsys, caplog):
    assert main([]) == 0
    assert "3 labels made" in capsys.readouterr().out
    for split, count in (("train", 9000), ("test", 1000)):
        with caplog.at_level(logging.WARNING):
            records = get_records(f"coco_stuff10k_{split}")
        assert f"{len(NAMES[split])} of {count} frames" in caplog.text
        assert [record["image_id"] for record in records] == sorted(NAMES[split])
        metadata = MetadataCatalog.get(f"coco_stuff10k_{split}")
        values = np.resize(np.array(list(IDS.values())), (9, 14))
        np.testing.assert_array_equal(
            read_label(records[0], metadata), np.where(values == 0, 255, values - 1)
        )
        # Some COCO images are grey.
        assert read_image(records[0], "RGB").shape == (9, 14, 3)


def test_classes():
    metadata = MetadataCatalog.get("coco_stuff10k_train")
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == 171
    # Original ids 1 person, 90 toothbrush, 92 banner, 182 wood.
    for original, name in ((1, "person"), (90, "toothbrush"), (92, "banner"), (149, "road"), (182, "wood")):
        assert metadata.stuff_classes[PREPARED_VALUES[original] - 1] == name


def test_preparation_resumes(download):
    assert prepare(download) == 3
    label = download / f"annotations/train2014/{NAMES['train'][0]}_labelTrainIds.png"
    label.unlink()
    assert prepare(download) == 1
    with Image.open(label) as image:
        assert image.mode == "L"


def test_unprepared_download(download):
    with pytest.raises(
        LayoutError, match="lacks images/train2014, annotations/train2014.*prepare_coco_stuff10k.py"
    ):
        get_records("coco_stuff10k_train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("imageLists/test.txt", "no .*imageLists/test.txt; unpack cocostuff-10k-v1.1.zip"),
        (f"images/{NAMES['test'][0]}.jpg", "no image .*000064.jpg, which imageLists names"),
        (f"annotations/{NAMES['test'][0]}.mat", "no annotation .*000064.mat, which imageLists names"),
    ],
)
def test_preparation_names_what_is_missing(download, capsys, damage, message):
    (download / damage).unlink()
    assert main([]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_broken_annotation(download, capsys):
    (download / f"annotations/{NAMES['test'][0]}.mat").write_bytes(b"MATLAB 5.0 cut off")
    assert main(["--root", str(download)]) == 1
    assert "000064.mat cannot be read" in capsys.readouterr().err


def test_preparation_without_a_download(capsys):
    assert main([]) == 1
    assert "coco_stuff10k; set GMM_ANOMALY_COCO_STUFF10K" in capsys.readouterr().err
