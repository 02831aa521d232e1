"""Which image belongs to which label."""

from __future__ import annotations

import pytest

from gmm_anomaly.data.errors import LayoutError
from gmm_anomaly.data.pairing import FolderPairs, list_files, pair


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_stems_match_whatever_the_extension(tmp_path):
    touch(tmp_path, "im/b.webp", "im/a.JPG", "im/c.png", "gt/a.png", "gt/b.PNG", "gt/c.png", "gt/notes.txt")
    records = FolderPairs("im", "gt")(tmp_path)
    assert records == [
        {
            "file_name": str(tmp_path / f"im/{image}"),
            "sem_seg_file_name": str(tmp_path / f"gt/{gt}"),
            "image_id": key,
        }
        for key, image, gt in (("a", "a.JPG", "a.png"), ("b", "b.webp", "b.PNG"), ("c", "c.png", "c.png"))
    ]


def test_suffixes_and_subfolders(tmp_path):
    touch(
        tmp_path,
        "im/x/1_leftImg8bit.png",
        "im/y/1_leftImg8bit.png",
        "gt/x/1_gt.png",
        "gt/x/1_gt_color.png",
        "gt/y/1_gt.png",
    )
    records = FolderPairs("im", "gt", "_leftImg8bit", "_gt", recursive=True)(tmp_path)
    assert [record["image_id"] for record in records] == ["x__1", "y__1"]
    assert [record["sem_seg_file_name"] for record in records] == [
        str(tmp_path / f"gt/{folder}/1_gt.png") for folder in "xy"
    ]


def test_hidden_files_and_subfolders_are_passed_over(tmp_path):
    touch(tmp_path, "im/a.png", "im/._a.png", "im/deeper/b.png")
    assert list(list_files(tmp_path / "im")) == ["a"]
    assert list(list_files(tmp_path / "im", recursive=True)) == ["a", "deeper/b"]
    assert list(list_files(tmp_path / "im", recursive=True, exclude={tmp_path / "im/a.png"})) == ["deeper/b"]


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/a.png")
    (tmp_path / "im").mkdir()
    (tmp_path / "im/town").symlink_to(tmp_path / "elsewhere")
    assert list(list_files(tmp_path / "im", recursive=True)) == ["town/a"]


def test_image_without_label_is_named(tmp_path):
    touch(tmp_path, "im/a.png", "im/b.png", "gt/a.png")
    with pytest.raises(LayoutError, match=r"1 image \(.*im/b.png\) without a label"):
        FolderPairs("im", "gt")(tmp_path)
    records = FolderPairs("im", "gt", every_image_labelled=False)(tmp_path)
    assert ["sem_seg_file_name" in record for record in records] == [True, False]


def test_labels_without_image_are_named(tmp_path):
    touch(tmp_path, "im/a.png", *(f"gt/{name}.png" for name in "abcde"))
    for every in (True, False):
        with pytest.raises(
            LayoutError, match=r"4 labels \(.*b.png, .*c.png, .*d.png, ...\) without an image"
        ):
            FolderPairs("im", "gt", every_image_labelled=every)(tmp_path)


def test_withheld_labels(tmp_path):
    touch(tmp_path, "im/a.png")
    layout = FolderPairs("im", None)
    assert layout.needs() == ("im",)
    assert layout(tmp_path) == [{"file_name": str(tmp_path / "im/a.png"), "image_id": "a"}]


def test_two_files_for_one_frame(tmp_path):
    touch(tmp_path, "im/a.png", "im/a.jpg")
    with pytest.raises(LayoutError, match=r"two files stand for one frame: .*a\.\w+ and .*a\.\w+"):
        list_files(tmp_path / "im")


def test_no_folder(tmp_path):
    with pytest.raises(LayoutError, match="there is no folder .*im"):
        list_files(tmp_path / "im")


def test_pair_of_nothing():
    assert pair({}, {}) == []
