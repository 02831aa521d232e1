"""What ``tools/check_datasets.py`` says, and its exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset
from gmm_anomaly.data.checking import (
    BAD_FILES,
    MISSING,
    PRESENT,
    WRONG_COUNT,
    WRONG_LAYOUT,
    check_dataset,
    chosen_names,
    main,
    render,
)
from gmm_anomaly.data.registration import registered_specs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mine(tmp_path, make_pairs):
    make_pairs(tmp_path / "mine", "abc")
    register_anomaly_dataset("mine", tmp_path / "mine/images", tmp_path / "mine/labels", expected_count=3)
    return tmp_path / "mine"


def test_present(mine):
    for deep in (False, True):
        check = check_dataset("mine", deep=deep)
        assert (check.state, check.count, check.labelled, check.message) == (PRESENT, 3, 3, "")
    assert main(["mine"]) == 0


def test_wrong_count(mine, make_pairs, capsys):
    make_pairs(mine, "d")
    check = check_dataset("mine")
    assert (check.state, check.count, check.expected) == (WRONG_COUNT, 4, 3)
    assert main(["mine"]) == 1
    assert "4 of 3 frames" in capsys.readouterr().out


def test_wrong_layout(mine):
    (mine / "labels/b.png").unlink()
    check = check_dataset("mine")
    assert check.state == WRONG_LAYOUT and "b.png" in check.message


def test_missing(datasets_root):
    check = check_dataset("road_anomaly")
    assert (check.state, check.root, check.count) == (MISSING, str(datasets_root / "RoadAnomaly_jpg"), 0)
    assert "Download RoadAnomaly_jpg.zip" in check.hint


def test_only_deep_checks_open_files(mine, save_image):
    (mine / "images/a.png").write_bytes(b"no picture")
    save_image(mine / "labels/b.png", np.full((12, 16), 7, np.uint8))
    save_image(mine / "labels/c.png", np.zeros((5, 5), np.uint8))
    assert check_dataset("mine").state == PRESENT
    check = check_dataset("mine", deep=True)
    assert check.state == BAD_FILES and len(check.bad_files) == 3
    for text, part in zip(
        check.bad_files, ("a.png cannot be decoded", "label value 7", "c.png is 5 x 5"), strict=True
    ):
        assert part in text
    text = render([check])
    assert all(line in text for line in check.bad_files)


def test_withheld_labels_are_fine(mine, tmp_path):
    register_segmentation_dataset("secret", mine / "images", None, classes="ab")
    check = check_dataset("secret", deep=True)
    assert (check.state, check.count, check.labelled) == (PRESENT, 3, 0)
    assert "3 frames, 0 with labels" in render([check])


def test_synthetic_streets_are_always_present():
    assert check_dataset("synthetic_street_val").state == PRESENT


def test_all_data_sets_in_an_empty_place(capsys):
    assert main([]) == 1
    text = capsys.readouterr().out
    for name, spec in registered_specs().items():
        assert f"{name} " in text
        if spec.root is not None:
            assert spec.hint() in text
    assert f"3 of {len(registered_specs())} data sets are present" in text
    # One piece of advice for the splits of one data set.
    assert text.count("Download leftImg8bit_trainvaltest.zip") == 1


def test_missing_companion_is_named(datasets_root, save_image, capsys):
    label = "0000_04_Maurener_Weg_8_000000_000030_labels.png"
    save_image(datasets_root / "fishyscapes_lostandfound" / label, np.zeros((4, 4), np.uint8))
    assert check_dataset("fishyscapes_lost_and_found").state == MISSING
    main(["fishyscapes_lost_and_found"])
    assert f"but there is no folder {datasets_root / 'lost_and_found'}" in capsys.readouterr().out


def test_readme_names_every_place():
    text = (ROOT / "datasets/README.md").read_text()
    for spec in registered_specs().values():
        if spec.root is not None:
            assert all(folder in text for folder in spec.root.folders[:1]), spec.name
            # "..._STATIC_V1 … V3" stands for three.
            assert spec.root.variable.removesuffix("_V2").removesuffix("_V3") in text, spec.name
        if spec.expected_count is not None:
            assert re.search(rf"\b{spec.expected_count}\b", text), spec.name


def test_json(mine, capsys):
    assert main(["--json", "mine", "ade20k_val"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["state"], first["count"]) == ("mine", PRESENT, 3)
    assert (second["name"], second["state"], second["expected"]) == ("ade20k_val", MISSING, 2000)


def test_patterns(capsys):
    assert chosen_names(["camvid_*test", "camvid_test"]) == ["camvid_test", "camvid_ood_test"]
    with pytest.raises(SystemExit) as caught:
        main(["kitti*"])
    assert caught.value.code == 2
    assert "no data set matches 'kitti*'; known: synthetic_street_train" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--register", "nowhere.py"])
    assert caught.value.code == 2
    assert "nowhere.py" in capsys.readouterr().err


def test_scripts(tmp_path, make_pairs):
    """The command lines themselves: the checker with the example of one's own data set, and the
    preparations."""
    make_pairs(tmp_path / "datasets/own", "ab")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-W", "ignore", *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    example = str(ROOT / "datasets/own_dataset_example.py")
    done = run(str(ROOT / "tools/check_datasets.py"), "--deep", "--register", example, "own_anomalies")
    assert done.returncode == 0, done.stderr
    assert "own_anomalies  present       2 frames" in done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "datasets").glob("prepare_*.py")))
def test_preparation_scripts_are_thin(script, monkeypatch, capsys):
    """Run in this process: they hand over to the tested ``main``, with its exit status."""
    import runpy

    monkeypatch.setattr(sys, "argv", [script, *(["--version", "3"] if "static" in script else [])])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "datasets" / script), run_name="__main__")
    assert caught.value.code == 1
    assert "there is no folder" in capsys.readouterr().err
