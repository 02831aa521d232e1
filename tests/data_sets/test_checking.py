"""What ``gmm-anomaly datasets`` says, and its exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from gmm_anomaly import cli
from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset
from gmm_anomaly.data.checking import (
    BAD_FILES,
    BAD_LABELS,
    MISSING,
    PRESENT,
    WRONG_COUNT,
    WRONG_LAYOUT,
    check_dataset,
    render,
    warn_of_labels,
)
from gmm_anomaly.data.registration import get_records, registered_specs

ROOT = Path(__file__).parents[2]


def main(arguments):
    return cli.main(["datasets", *arguments])


@pytest.fixture
def mine(tmp_path, make_pairs):
    make_pairs(tmp_path / "mine", "abc")
    register_anomaly_dataset("mine", tmp_path / "mine/images", tmp_path / "mine/labels", expected_count=3)
    return tmp_path / "mine"


def test_states(mine, make_pairs, datasets_root):
    for deep in (False, True):
        check = check_dataset("mine", deep=deep)
        assert (check.state, check.count, check.labelled, check.message) == (PRESENT, 3, 3, "")
    assert main(["mine"]) == 0
    make_pairs(mine, "d")
    check = check_dataset("mine")
    assert (check.state, check.count, check.expected) == (WRONG_COUNT, 4, 3)
    assert "4 of 3 frames" in render([check])
    (mine / "labels/b.png").unlink()
    check = check_dataset("mine")
    assert check.state == WRONG_LAYOUT and "b.png" in check.message
    check = check_dataset("road_anomaly")
    assert (check.state, check.root, check.count) == (MISSING, str(datasets_root / "RoadAnomaly_jpg"), 0)
    assert "Download RoadAnomaly_jpg.zip" in check.message
    assert check_dataset("synthetic_street_val").state == PRESENT


def test_only_deep_checks_open_files(mine, save_image):
    (mine / "images/a.png").write_bytes(b"no picture")
    save_image(mine / "labels/b.png", np.full((12, 16), 7, np.uint8))
    save_image(mine / "labels/c.png", np.zeros((5, 5), np.uint8))
    assert check_dataset("mine").state == PRESENT
    check = check_dataset("mine", deep=True)
    assert check.state == BAD_FILES
    parts = ("a.png cannot be decoded", "label value 7", "c.png is 5 x 5")
    assert all(part in text for text, part in zip(check.bad_files, parts, strict=True))
    assert all(line in render([check]) for line in check.bad_files)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((0, 255), ("an anomaly; 50 % .*{0: 0, 255: 1}", "of another class than a; 50 % .*255: 1}")),
        ((255,), ("no pixel is labelled; 100 %", "no pixel is labelled; 100 %")),
        ((0, 1, 255), ("", "")),
        ((0,), ("an anomaly$", "")),
    ],
)
def test_labels_that_have_the_form_alone(values, found, tmp_path, make_pairs, caplog):
    make_pairs(tmp_path, "abc", values)
    folders = (tmp_path / "images", tmp_path / "labels")
    register_anomaly_dataset("odd", *folders)
    register_segmentation_dataset("two", *folders, classes=["a", "b"])
    for name, fault in zip(("odd", "two"), found, strict=True):
        check = check_dataset(name, deep=True)
        assert check.state == (BAD_LABELS if fault else PRESENT)
        assert re.search(fault and f"{name}: of all labels, .*{fault}", check.message)
        warn_of_labels(name, get_records(name))
        assert [record.getMessage() for record in caplog.records] == [check.message] * bool(fault)
        caplog.clear()
    assert ("two: no label has a pixel of b" == check.message) == (values == (0,))


def test_withheld_labels_are_fine(mine):
    register_segmentation_dataset("secret", mine / "images", None, classes=list("ab"))
    check = check_dataset("secret", deep=True)
    assert (check.state, check.count, check.labelled) == (PRESENT, 3, 0)
    assert "3 frames, 0 with labels" in render([check])


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


def test_readme_names_every_place():
    text = (ROOT / "datasets/README.md").read_text()
    for spec in registered_specs().values():
        if spec.root is not None:
            assert all(folder in text for folder in spec.root.folders[:1]), spec.name
            # "..._STATIC_V1 … V3" stands for three.
            assert spec.root.variable.removesuffix("_V2").removesuffix("_V3") in text, spec.name
        if spec.expected_count is not None:
            assert re.search(rf"\b{spec.expected_count}\b", text), spec.name


def test_json_and_patterns(mine, capsys):
    assert main(["--json", "mine", "ade20k_val"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["state"], first["count"]) == ("mine", PRESENT, 3)
    assert (second["name"], second["state"], second["expected"]) == ("ade20k_val", MISSING, 2000)
    main(["--json", "camvid_*test", "camvid_test"])
    names = [found["name"] for found in json.loads(capsys.readouterr().out)]
    assert names == ["camvid_test", "camvid_ood_test"]
    with pytest.raises(SystemExit) as caught:
        main(["kitti*"])
    message = "no data set matches 'kitti*'; known: synthetic_street_train"
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_the_example_of_ones_own_data_set(tmp_path, make_pairs, monkeypatch, capsys):
    make_pairs(tmp_path / "datasets/own", "ab")
    monkeypatch.chdir(tmp_path)
    example = str(ROOT / "datasets/own_dataset_example.py")
    assert main(["own_anomalies", "--deep", "--register", example]) == 0
    assert "own_anomalies  present       2 frames" in capsys.readouterr().out
