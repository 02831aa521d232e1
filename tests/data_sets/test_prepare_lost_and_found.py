"""Label maps of LostAndFound for other programs: what they hold, resuming, checking, Ctrl-C."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gmm_anomaly.data import get_records, read_label, register_anomaly_dataset
from gmm_anomaly.data.label_rule import LabelRule
from gmm_anomaly.data.prepare_lost_and_found import main

FRAMES = {
    "train": ("01_Hanns_Klemm_Str_45_000000_000190",),
    "test": ("04_Maurener_Weg_8_000000_000030", "04_Maurener_Weg_8_000000_000040"),
}
RAW = np.resize(np.arange(256, dtype=np.uint8), (13, 21))
EXPECTED = np.select([RAW == 1, (RAW >= 2) & (RAW <= 200)], [0, 1], 255)


@pytest.fixture
def root(datasets_root, save_image):
    root = datasets_root / "lost_and_found"
    for split, frames in FRAMES.items():
        for frame in frames:
            folder = f"{split}/{frame.rsplit('_', 2)[0]}"
            save_image(
                root / f"leftImg8bit/{folder}/{frame}_leftImg8bit.png", np.zeros((13, 21, 3), np.uint8)
            )
            save_image(root / f"gtCoarse/{folder}/{frame}_gtCoarse_labelIds.png", RAW)
    return root


def label_maps(root):
    return sorted(path for path in (root / "labels_masks").rglob("*") if path.is_file())


def test_the_maps_are_a_data_set_of_their_own(root, capsys):
    assert main([]) == 0
    assert f"3 label maps made in {root / 'labels_masks'}" in capsys.readouterr().out
    for path in label_maps(root):
        assert np.array_equal(np.asarray(Image.open(path)), EXPECTED)
    register_anomaly_dataset(
        "others", root / "leftImg8bit/test", root / "labels_masks/test",
        image_suffix="_leftImg8bit", label_suffix="_labels_semantic",
    )  # fmt: skip
    rule = LabelRule.build("others", None, num_classes=2)
    records = get_records("others")
    assert [record["image_id"].rsplit("__")[-1] for record in records] == list(FRAMES["test"])
    assert np.array_equal(read_label(records[1], rule), EXPECTED)


def test_it_goes_on_and_checks(root, save_image, capsys):
    assert main(["--split", "test"]) == 0
    first, second = label_maps(root)
    written = first.stat().st_mtime_ns
    second.unlink()
    assert main([]) == 0
    assert "2 label maps made" in capsys.readouterr().out.splitlines()[-1]
    assert first.stat().st_mtime_ns == written
    assert main(["--check"]) == 0
    save_image(first, np.zeros((13, 21), np.uint8))
    assert main([]) == 0
    assert main(["--check"]) == 1
    assert f"{first} differs from its labelIds" in capsys.readouterr().err


def test_ctrl_c_leaves_no_half_map(root, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", interrupted)
    assert main([]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not label_maps(root)


def test_what_is_wrong_is_named(root, tmp_path, capsys):
    label = next((root / "gtCoarse/train").rglob("*.png"))
    label.write_bytes(label.read_bytes()[:40])
    assert main(["--split", "train"]) == 1
    assert f"label {label} cannot be decoded" in capsys.readouterr().err
    label.unlink()
    assert main(["--split", "train"]) == 1
    assert "000190_leftImg8bit.png) without a label" in capsys.readouterr().err
    assert main(["--root", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
