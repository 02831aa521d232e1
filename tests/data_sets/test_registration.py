"""Registration, pairing of images and labels, and every error of a data set that is not as it should be."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gmm_anomaly.data import (
    LayoutError,
    MissingDataError,
    get_records,
    read_label,
    register_all,
    register_anomaly_dataset,
    register_segmentation_dataset,
    registration,
)
from gmm_anomaly.data.pairing import DataRoot, FolderPairs, list_files
from gmm_anomaly.data.registration import DatasetSpec, register, registered_specs

ROOT = DataRoot(("bench", "Bench_v2"), "GMM_ANOMALY_BENCH")


@pytest.fixture
def bench():
    """A benchmark of two frames."""
    spec = DatasetSpec(
        "bench_test", "anomaly", FolderPairs("images", "labels"), ROOT, expected_count=2,
        source="Download bench.zip.",
    )  # fmt: skip
    register(spec)
    return spec


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


# ---- A user's own data sets ----


def test_own_sets(tmp_path, make_pairs):
    make_pairs(tmp_path / "mine", ["a", "sub/b"])
    register_anomaly_dataset("mine", tmp_path / "mine/images", tmp_path / "mine/labels")
    records = get_records("mine")
    assert records == DatasetCatalog.get("mine")
    assert [record["image_id"] for record in records] == ["a", "sub__b"]
    metadata = MetadataCatalog.get("mine")
    found = (metadata.evaluator_type, metadata.protocol, metadata.component_track, metadata.ignore_label)
    assert found == ("anomaly", "pooled", None, 255)
    assert set(np.unique(read_label(records[0], metadata))) == {0, 1, 255}
    make_pairs(tmp_path, ["a"], values=(4, 9, 255))
    register_segmentation_dataset(
        "closed", tmp_path / "images", tmp_path / "labels", classes=["road", "sky"],
        colors=[(1, 2, 3), (4, 5, 6)], label_map={4: 1, 9: 0},
    )  # fmt: skip
    metadata = MetadataCatalog.get("closed")
    assert metadata.evaluator_type == "closed_set"
    assert (metadata.stuff_classes, metadata.stuff_colors) == (["road", "sky"], [[1, 2, 3], [4, 5, 6]])
    (record,) = get_records("closed")
    assert read_label(record, metadata).ravel()[:3].tolist() == [1, 0, 255]


def test_images_and_labels_in_one_folder(tmp_path):
    touch(tmp_path, "a_image.png", "a_label.png", "b.jpg", "b_label.png")
    register_anomaly_dataset("both", tmp_path, tmp_path, image_suffix="_image", label_suffix="_label")
    with pytest.raises(LayoutError, match=r"both: 1 label \(.*b_label.png\) without an image"):
        get_records("both")
    (tmp_path / "b.jpg").rename(tmp_path / "b_image.jpg")
    assert [record["image_id"] for record in get_records("both")] == ["a", "b"]
    touch(tmp_path / "bare", "a.jpg", "a.png")
    register_anomaly_dataset("bare", tmp_path / "bare", tmp_path / "bare")
    (record,) = get_records("bare")
    assert record["file_name"][-5:] == "a.jpg" and record["sem_seg_file_name"][-5:] == "a.png"


def test_pair_files_takes_any_layout(tmp_path):
    touch(tmp_path, "a/frame.png", "a/truth.png", "b/frame.png")

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
    twice = [(tmp_path / "a/frame.png", None)] * 2
    register_anomaly_dataset("twice", tmp_path, None, pair_files=lambda *_: twice)
    with pytest.raises(LayoutError, match="twice: .*frame.png and .*frame.png have one name, 'a__frame'"):
        get_records("twice")


def test_same_name_twice(tmp_path):
    """The same registration again is no error; another one is, unless it is to replace the first."""
    for label_map in ({1: 1, 0: 0}, {0: 0, 1: 1}):
        register_anomaly_dataset("mine", tmp_path, None, label_map=label_map)
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_anomaly_dataset("mine", tmp_path, None, protocol="smiyc")
    assert MetadataCatalog.get("mine").protocol == "pooled"
    register_anomaly_dataset("mine", tmp_path, None, protocol="smiyc", overwrite=True)
    assert MetadataCatalog.get("mine").protocol == "smiyc"
    with pytest.raises(ValueError, match="'coco_2017_val' is registered already"):
        register_anomaly_dataset("coco_2017_val", tmp_path, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "mean"}, "protocol must be one of pooled, .*found 'mean'"),
        ({"component_track": "cars"}, "component_track must be 'anomaly', 'obstacle' or None, found 'cars'"),
        ({"label_map": {0: 2}}, "mine: label_map maps 0 to 2"),
        ({"label_map": [(0, 1)]}, "mine: label_map: expected {raw value: target}, found"),
        ({"classes": ["a", "b"], "colors": [(0, 0, 0)]}, "2 classes, but 1 colors"),
        ({"classes": ["a"], "colors": [(0.1, 0, 0)]}, r"colors: expected whole .* found \(0.1, 0, 0\)"),
        ({"classes": "road"}, r"mine: classes: expected a list of names such as \['road'\], found 'road'"),
        ({"classes": []}, "classes: expected a list of names"),
        ({"classes": [1, 2]}, r"classes: expected names, without blanks around, found 1"),
        ({"classes": ["a", "b "]}, "classes: expected names, without blanks"),
        ({"classes": ["a", "b", "a"]}, "classes: expected each name once, found a again"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    function = register_segmentation_dataset if "classes" in arguments else register_anomaly_dataset
    with pytest.raises(ValueError, match=message):
        function("mine", tmp_path, None, **arguments)
    assert "mine" not in DatasetCatalog


def test_registration_opens_and_lists_nothing(monkeypatch, tmp_path):
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
    register_anomaly_dataset("later", tmp_path / "not there yet", tmp_path / "nor this")
    monkeypatch.undo()
    assert list(registered_specs()) == [*names, "later"] and set(names) <= set(DatasetCatalog)
    with pytest.raises(ValueError, match="unknown data set 'latr'. Did you mean 'later'.*camvid_train,"):
        get_records("latr")
    with pytest.raises(MissingDataError, match="later: there is no folder .*not there yet"):
        get_records("later")


# ---- Roots and counts ----


def test_root_is_found_by_variable_then_by_folder_names(
    bench, datasets_root, tmp_path, make_pairs, monkeypatch
):
    def root():
        return get_records("bench_test")[0]["file_name"].removesuffix("/images/a.png")

    make_pairs(datasets_root / "Bench_v2", "ab")
    assert root() == str(datasets_root / "Bench_v2")
    make_pairs(datasets_root / "bench", "ab")
    assert root() == str(datasets_root / "bench")
    make_pairs(tmp_path / "other", "ab")
    monkeypatch.setenv("GMM_ANOMALY_BENCH", str(tmp_path / "other"))
    assert root() == str(tmp_path / "other")
    monkeypatch.delenv("GMM_ANOMALY_BENCH")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    assert ROOT.path() == tmp_path / "datasets/bench"


def test_links_are_followed(bench, datasets_root, tmp_path, make_pairs):
    """Data sets, folders and files that are linked from shared storage, as on clusters."""
    make_pairs(tmp_path / "storage", "ab")
    (datasets_root / "bench/images").mkdir(parents=True)
    (datasets_root / "bench/labels").symlink_to(tmp_path / "storage/labels")
    for name in ("a.png", "b.png"):
        (datasets_root / "bench/images" / name).symlink_to(tmp_path / "storage/images" / name)
    assert len(get_records("bench_test")) == 2
    touch(tmp_path, "elsewhere/a.png")
    (tmp_path / "im").mkdir()
    (tmp_path / "im/town").symlink_to(tmp_path / "elsewhere")
    assert list(list_files(tmp_path / "im", recursive=True)) == ["town/a"]


def test_what_is_missing_is_said_with_what_to_do(bench, datasets_root):
    advice = "Download bench.zip. Then set GMM_ANOMALY_BENCH to it, or put it at .DETECTRON2_DATASETS/bench"
    with pytest.raises(MissingDataError, match=f"bench_test: there is no folder .*/bench. {advice}"):
        get_records("bench_test")
    (datasets_root / "bench/images").mkdir(parents=True)
    with pytest.raises(LayoutError, match=f"bench_test: there is no folder .*bench/labels. {advice}"):
        get_records("bench_test")
    (datasets_root / "bench/labels").mkdir()
    with pytest.raises(LayoutError, match=f"bench_test: no images in .*bench. {advice}"):
        get_records("bench_test")


def test_wrong_count_is_a_warning_with_both_numbers(bench, datasets_root, make_pairs, caplog):
    make_pairs(datasets_root / "bench", "abc")
    with caplog.at_level(logging.WARNING):
        assert len(get_records("bench_test")) == 3
    assert "bench_test: 3 of 2 frames" in caplog.text


# ---- Pairing ----


def test_stems_match_whatever_the_extension(tmp_path):
    touch(tmp_path, "im/b.webp", "im/a.JPG", "im/c.png", "gt/a.png", "gt/b.PNG", "gt/c.png", "gt/notes.txt")
    assert FolderPairs("im", "gt")(tmp_path) == [
        {
            "file_name": str(tmp_path / f"im/{image}"),
            "sem_seg_file_name": str(tmp_path / f"gt/{label}"),
            "image_id": key,
        }
        for key, image, label in (("a", "a.JPG", "a.png"), ("b", "b.webp", "b.PNG"), ("c", "c.png", "c.png"))
    ]
    withheld = FolderPairs("im", None)(tmp_path)
    assert [sorted(record) for record in withheld] == [["file_name", "image_id"]] * 3


def test_suffixes_and_subfolders(tmp_path):
    images = ("im/x/1_image.png", "im/y/1_image.png", "im/._x_image.png", "im/z/other.png")
    folders = (".ipynb_checkpoints", "x/@eaDir", ".git/a", "__MACOSX/x")
    images += tuple(f"im/{folder}/1_image.png" for folder in folders)
    touch(tmp_path, *images, "gt/x/1_gt.png", "gt/x/1_gt_color.png", "gt/y/1_gt.png")
    records = FolderPairs("im", "gt", "_image", "_gt", recursive=True)(tmp_path)
    assert [record["image_id"] for record in records] == ["x__1", "y__1"]
    assert [record["sem_seg_file_name"] for record in records] == [
        str(tmp_path / f"gt/{folder}/1_gt.png") for folder in "xy"
    ]
    assert list(list_files(tmp_path / "im")) == []


@pytest.mark.parametrize("every", [True, False])
def test_counterparts_that_are_missing_are_named(tmp_path, every):
    touch(tmp_path, "im/a.png", "im/b.png", "gt/a.png")
    layout = FolderPairs("im", "gt", every_image_labelled=every)
    if every:
        with pytest.raises(LayoutError, match=r"1 image \(.*im/b.png\) without a label"):
            layout(tmp_path)
    else:
        assert ["sem_seg_file_name" in record for record in layout(tmp_path)] == [True, False]
    touch(tmp_path, *(f"gt/{name}.png" for name in "bcdef"))
    with pytest.raises(LayoutError, match=r"4 labels \(.*c.png, .*d.png, .*e.png, ...\) without an image"):
        layout(tmp_path)
    touch(tmp_path, "im/a.jpg")
    with pytest.raises(LayoutError, match=r"two files stand for one frame: .*a\.\w+ and .*a\.\w+"):
        layout(tmp_path)
