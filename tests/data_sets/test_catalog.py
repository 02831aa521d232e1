"""Registration, the catalogs' entries, and every error of a data set that is not as it should be."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gmm_anomaly.data import (
    LayoutError,
    MissingDataError,
    dataset_status,
    get_records,
    read_label,
    register_anomaly_dataset,
    register_segmentation_dataset,
    registration,
)
from gmm_anomaly.data.builtin import register_all
from gmm_anomaly.data.pairing import FolderPairs
from gmm_anomaly.data.registration import register, registered_specs
from gmm_anomaly.data.roots import DataRoot
from gmm_anomaly.data.spec import DatasetSpec

ROOT = DataRoot(("bench", "Bench_v2"), "GMM_ANOMALY_BENCH")


def bench(**changes) -> DatasetSpec:
    layout = FolderPairs("images", "labels")
    return DatasetSpec(
        **{
            "name": "bench_test",
            "evaluator_type": "anomaly",
            "layout": layout,
            "root": ROOT,
            "needs": layout.needs(),
            "expected_count": 2,
            "source": "Download bench.zip.",
        }
        | changes
    )


def test_own_anomaly_set(tmp_path, make_pairs):
    make_pairs(tmp_path / "mine", ["a", "sub/b"])
    register_anomaly_dataset("mine", tmp_path / "mine/images", tmp_path / "mine/labels")
    records = get_records("mine")
    assert records == DatasetCatalog.get("mine")
    assert [record["image_id"] for record in records] == ["a", "sub__b"]
    metadata = MetadataCatalog.get("mine")
    assert (metadata.evaluator_type, metadata.protocol, metadata.component_track) == (
        "anomaly",
        "pooled",
        None,
    )
    assert (metadata.ignore_label, metadata.label_map, metadata.expected_count) == (255, None, None)
    assert metadata.root == str(tmp_path / "mine/images")
    assert set(np.unique(read_label(records[0], metadata))) == {0, 1, 255}


def test_own_closed_set(tmp_path, make_pairs):
    make_pairs(tmp_path, ["a"], values=(4, 9, 255))
    register_segmentation_dataset(
        "closed",
        tmp_path / "images",
        tmp_path / "labels",
        classes=["road", "sky"],
        colors=[(1, 2, 3), (4, 5, 6)],
        label_map={4: 1, 9: 0},
    )
    metadata = MetadataCatalog.get("closed")
    assert metadata.evaluator_type == "closed_set"
    assert (metadata.stuff_classes, metadata.stuff_colors) == (["road", "sky"], [[1, 2, 3], [4, 5, 6]])
    (record,) = get_records("closed")
    assert read_label(record, metadata).ravel()[:3].tolist() == [1, 0, 255]


def test_images_and_labels_in_one_folder(tmp_path, make_pairs, save_image):
    for name in "ab":
        save_image(tmp_path / f"{name}_image.png", np.zeros((4, 4, 3), np.uint8))
        save_image(tmp_path / f"{name}_label.png", np.zeros((4, 4), np.uint8))
    register_anomaly_dataset("both", tmp_path, tmp_path, image_suffix="_image", label_suffix="_label")
    assert [record["image_id"] for record in get_records("both")] == ["a", "b"]
    for name in "ab":
        (tmp_path / f"{name}_image.png").rename(tmp_path / f"{name}.png")
    register_anomaly_dataset("bare", tmp_path, tmp_path, label_suffix="_label")
    assert [Path(record["file_name"]).name for record in get_records("bare")] == ["a.png", "b.png"]


def test_pair_files_takes_any_layout(tmp_path, save_image):
    for name in "ab":
        save_image(tmp_path / f"{name}/frame.png", np.zeros((4, 4, 3), np.uint8))
    save_image(tmp_path / "a/truth.png", np.zeros((4, 4), np.uint8))

    def pairs(images, labels):
        assert (images, labels) == (tmp_path, None)
        return [(images / "a/frame.png", images / "a/truth.png"), (images / "b/frame.png", None)]

    register_anomaly_dataset("odd", tmp_path, None, pair_files=pairs)
    first, second = get_records("odd")
    assert first["sem_seg_file_name"] == str(tmp_path / "a/truth.png")
    assert "sem_seg_file_name" not in second and second["image_id"] == "b__frame"
    register_anomaly_dataset("gone", tmp_path, None, pair_files=lambda images, _: [(images / "no.png", None)])
    with pytest.raises(LayoutError, match="gone: pair_files names a file that is not there: .*no.png"):
        get_records("gone")


def test_same_registration_twice_is_no_error(tmp_path):
    for _ in range(2):
        register_anomaly_dataset("mine", tmp_path, None, label_map={1: 1, 0: 0})
    register_anomaly_dataset("mine", tmp_path, None, label_map={0: 0, 1: 1})


def test_same_name_with_other_arguments(tmp_path):
    register_anomaly_dataset("mine", tmp_path, None)
    with pytest.raises(ValueError, match="a data set named 'mine' is registered already"):
        register_anomaly_dataset("mine", tmp_path, None, protocol="smiyc")
    assert MetadataCatalog.get("mine").protocol == "pooled"
    register_anomaly_dataset("mine", tmp_path, None, protocol="smiyc", overwrite=True)
    assert MetadataCatalog.get("mine").protocol == "smiyc"


def test_names_of_detectron2_are_not_taken_silently(tmp_path):
    with pytest.raises(ValueError, match="'coco_2017_val' is registered already"):
        register_anomaly_dataset("coco_2017_val", tmp_path, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "mean"}, "protocol must be one of pooled, .*found 'mean'"),
        ({"component_track": "cars"}, "component_track must be 'anomaly', 'obstacle' or None, found 'cars'"),
        ({"label_map": {0: 2}}, "mine: label_map maps 0 to 2"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        register_anomaly_dataset("mine", tmp_path, None, **arguments)
    assert "mine" not in DatasetCatalog


def test_colors_must_be_one_a_class(tmp_path):
    with pytest.raises(ValueError, match="2 classes, but 1 colors"):
        register_segmentation_dataset("mine", tmp_path, None, classes="ab", colors=[(0, 0, 0)])


def test_registering_touches_no_files(tmp_path):
    register_anomaly_dataset("later", tmp_path / "not there yet", tmp_path / "nor this")
    with pytest.raises(MissingDataError, match="later: there is no folder .*not there yet"):
        get_records("later")


def test_missing_root_says_what_to_do(datasets_root):
    register(bench())
    with pytest.raises(FileNotFoundError) as caught:
        get_records("bench_test")
    message = str(caught.value)
    for part in (
        f"bench_test: there is no folder {datasets_root}/bench",
        "Download bench.zip.",
        "GMM_ANOMALY_BENCH",
    ):
        assert part in message
    assert "$DETECTRON2_DATASETS/bench" in message


def test_root_is_found_by_variable_then_by_folder_names(datasets_root, tmp_path, make_pairs, monkeypatch):
    register(bench())
    make_pairs(datasets_root / "Bench_v2", "ab")
    assert get_records("bench_test")[0]["file_name"].startswith(str(datasets_root / "Bench_v2"))
    make_pairs(datasets_root / "bench", "ab")
    assert get_records("bench_test")[0]["file_name"].startswith(str(datasets_root / "bench/"))
    make_pairs(tmp_path / "other", "ab")
    monkeypatch.setenv("GMM_ANOMALY_BENCH", str(tmp_path / "other"))
    assert get_records("bench_test")[0]["file_name"].startswith(str(tmp_path / "other"))
    assert MetadataCatalog.get("bench_test").root == str(tmp_path / "other")


def test_default_root_is_the_folder_datasets(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    assert ROOT.path() == tmp_path / "datasets/bench"


def test_missing_folder_in_the_root(datasets_root):
    register(bench())
    (datasets_root / "bench/images").mkdir(parents=True)
    with pytest.raises(
        LayoutError, match="bench lacks labels; the data set needs images, labels there. Download"
    ):
        get_records("bench_test")


def test_empty_data_set(datasets_root):
    register(bench())
    for folder in ("images", "labels"):
        (datasets_root / "bench" / folder).mkdir(parents=True)
    with pytest.raises(LayoutError, match="bench_test: no images in .*bench"):
        get_records("bench_test")


def test_layout_errors_name_the_data_set(datasets_root, make_pairs):
    register(bench())
    make_pairs(datasets_root / "bench", "ab")
    (datasets_root / "bench/labels/b.png").unlink()
    with pytest.raises(LayoutError, match=r"bench_test: 1 image \(.*b.png\) without a label"):
        get_records("bench_test")


def test_wrong_count_is_a_warning_with_both_numbers(datasets_root, make_pairs, caplog):
    register(bench())
    make_pairs(datasets_root / "bench", "abc")
    with caplog.at_level(logging.WARNING):
        assert len(get_records("bench_test")) == 3
    assert "bench_test: 3 of 2 frames" in caplog.text
    caplog.clear()
    make_pairs(datasets_root / "bench", "ab")
    (datasets_root / "bench/images/c.png").unlink()
    (datasets_root / "bench/labels/c.png").unlink()
    with caplog.at_level(logging.WARNING):
        get_records("bench_test")
    assert not caplog.text


def test_frames_with_one_name(tmp_path, save_image):
    def pairs(images, _):
        return [(images / "a.png", None), (images / "a.jpg", None)]

    for name in ("a.png", "a.jpg"):
        save_image(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    register_anomaly_dataset("twice", tmp_path, None, pair_files=pairs)
    with pytest.raises(LayoutError, match="twice: 2 frames, but only 1 different names"):
        get_records("twice")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError) as caught:
        get_records("camvid_tets")
    assert "unknown data set 'camvid_tets'. Did you mean 'camvid_test'?" in str(caught.value)
    for name in registered_specs():
        assert name in str(caught.value)


def test_status_looks_for_all_needed_folders(datasets_root, make_pairs):
    register(bench())

    def status():
        return next(status for status in dataset_status() if status.name == "bench_test")

    assert (status().found, status().root) == (False, datasets_root / "bench")
    (datasets_root / "bench/images").mkdir(parents=True)
    assert not status().found
    make_pairs(datasets_root / "bench", "a")
    assert status().found
    assert status().hint.startswith("Download bench.zip. Then set GMM_ANOMALY_BENCH")


def test_status_of_the_synthetic_streets_needs_no_files():
    found = {status.name: status for status in dataset_status()}
    assert found["synthetic_street_anomaly"].found and found["synthetic_street_anomaly"].root is None


def test_every_registered_set_has_the_agreed_metadata():
    for name, spec in registered_specs().items():
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type in ("closed_set", "anomaly"), name
        for key in (
            "ignore_label",
            "label_map",
            "root",
            "expected_count",
            "protocol",
            "component_track",
            "hint",
        ):
            assert hasattr(metadata, key), f"{name} {key}"
        if metadata.evaluator_type == "closed_set":
            assert len(set(metadata.stuff_classes)) == len(metadata.stuff_classes) > 1, name
            colors = metadata.get("stuff_colors")
            if len(metadata.stuff_classes) < 100:
                assert len(set(map(tuple, colors))) == len(colors) == len(metadata.stuff_classes), name
        if spec.root is not None:
            assert "Download" in metadata.hint and spec.root.variable in metadata.hint, name
            assert metadata.expected_count or "static_v" in name, name


def test_registration_opens_and_lists_nothing(monkeypatch):
    def refuse(*args, **_):
        raise AssertionError(f"touched {args}")

    names = list(registered_specs())
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    registration._SPECS.clear()
    for module, function in (("builtins", "open"), ("os", "scandir"), ("os", "listdir"), ("os", "walk")):
        monkeypatch.setattr(f"{module}.{function}", refuse)
    register_all()
    monkeypatch.undo()
    assert list(registered_specs()) == names
    assert set(names) <= set(DatasetCatalog)
