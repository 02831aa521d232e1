"""Links in data sets: followed inside the data, refused where they lead out."""

from __future__ import annotations

import json

import pytest

from gmm_anomaly.data import get_records, register_anomaly_dataset
from gmm_anomaly.data.errors import LayoutError


@pytest.fixture
def own(tmp_path, make_pairs):
    """Registers tmp_path/own as "links" and returns its folder, with two frames."""
    make_pairs(tmp_path / "own", ["a", "b"])
    register_anomaly_dataset("links", tmp_path / "own/images", tmp_path / "own/labels")
    return tmp_path / "own"


def moved(path, target):
    """Moves a file or folder to ``target`` and leaves a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(target)


def test_a_root_that_is_a_link_works(own, tmp_path):
    expected = get_records("links")
    moved(own, tmp_path / "disk/own")
    moved(tmp_path / "disk/own/labels", tmp_path / "other disk/labels")
    assert get_records("links") == expected and len(expected) == 2


def test_links_inside_are_followed(own):
    (own / "images/c.png").symlink_to("a.png")
    (own / "labels/c.png").symlink_to(own / "images/../labels/a.png")
    assert [record["image_id"] for record in get_records("links")] == ["a", "b", "c"]


@pytest.mark.parametrize("part", ["images/b.png", "labels/b.png", "images/town"])
def test_links_that_lead_out_are_refused_and_named(own, tmp_path, make_pairs, part, monkeypatch):
    make_pairs(own, ["town/c"])
    moved(own / part, tmp_path / "elsewhere" / part)
    with pytest.raises(LayoutError) as caught:
        get_records("links")
    message = str(caught.value)
    folder = tmp_path / "elsewhere" / (part if part.endswith("town") else part.partition("/")[0])
    assert (
        f"links: the link {own / part} leads out of the data, to {tmp_path / 'elsewhere' / part}" in message
    )
    assert message.endswith(f"export GMM_ANOMALY_LINKS={folder}")
    monkeypatch.setenv("GMM_ANOMALY_LINKS", f"/nowhere:{folder}")
    assert len(get_records("links")) == 3


def test_a_neighbour_with_the_same_beginning_is_outside(own, tmp_path):
    moved(own / "images/b.png", tmp_path / "own/images2/b.png")
    with pytest.raises(LayoutError, match="the link .*b.png leads out of the data"):
        get_records("links")


def test_links_between_data_sets_of_the_common_folder(own, datasets_root, tmp_path):
    moved(own / "images/a.png", datasets_root / "one/a.png")
    moved(own / "images/b.png", tmp_path / "disk/two/b.png")
    (datasets_root / "two").symlink_to(tmp_path / "disk/two")
    assert len(get_records("links")) == 2


def test_a_function_of_the_users_names_files_as_it_likes(own, tmp_path):
    moved(own / "images/a.png", tmp_path / "elsewhere/a.png")
    register_anomaly_dataset(
        "paired",
        own / "images",
        own / "labels",
        pair_files=lambda images, labels: [(images / "a.png", labels / "a.png")],
    )
    assert len(get_records("paired")) == 1


def test_list_files_cannot_name_files_outside(datasets_root, tmp_path, make_pairs):
    root = datasets_root.parent / "hazards"
    make_pairs(root, ["a"], images="test/images", labels="test/annotations")
    make_pairs(tmp_path / "secret", ["x"])
    entry = {"fpath_img": "../../secret/images/x.png", "fpath_segm": "annotations/a.png"}
    (root / "test/test.odgt").write_text(json.dumps(entry) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMM_ANOMALY_STREET_HAZARDS", str(root))
        with pytest.raises(
            LayoutError, match=r"x\.png lies outside of the data, in .*secret/images; correct"
        ):
            get_records("street_hazards_test")
