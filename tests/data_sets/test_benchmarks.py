"""Every public data set on a small tree of its real layout, and the real data where they are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import LayoutError, MissingDataError, get_records, read_image, read_label
from gmm_anomaly.data.benchmarks import BENCHMARKS, EMPTY_LABELS
from gmm_anomaly.data.registration import registered_specs

SIZE = (16, 17)  # more pixels than there are label values

# Train id of every labelId 0 .. 33, written out from Cityscapes' own definition.
TRAIN_IDS = [
    *(255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255),
    *(5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18),
]


@dataclass
class Layout:
    """Files of one split: paths with the frame's name, its name without the last part, its first part."""

    image: str
    label: str | None
    frames: tuple[str, ...]
    # Files beside them that must be passed over.
    beside: tuple[str, ...] = ()

    def paths(self, frame: str) -> tuple[str, str | None]:
        first, scene = frame.split("_")[0], frame.rsplit("_", 2)[0]
        return tuple(p and p.format(frame, first=first, scene=scene) for p in (self.image, self.label))


def camvid(split: str) -> Layout:
    return Layout(f"camvid/{split}/{{}}.png", f"camvid/{split}annot/{{}}.png", ("0001TP_006690", "Seq05VD_0"))


def cityscapes(split: str, *frames: str) -> Layout:
    folder = f"cityscapes/gtFine/{split}/{{first}}/{{}}_gtFine"
    return Layout(
        f"cityscapes/leftImg8bit/{split}/{{first}}/{{}}_leftImg8bit.png",
        f"{folder}_labelIds.png",
        frames,
        (f"{folder}_instanceIds.png", f"{folder}_color.png", f"{folder}_polygons.json"),
    )


def lost_and_found(split: str, frame: str) -> Layout:
    label = f"lost_and_found/gtCoarse/{split}/{{scene}}/{{}}_gtCoarse"
    image = f"lost_and_found/leftImg8bit/{split}/{{scene}}/{{}}_leftImg8bit.png"
    beside = (f"{label}_labelTrainIds.png", f"{label}_color.png")
    return Layout(image, f"{label}_labelIds.png", (frame,), beside)


def hazards(folder: str, split: str, *frames: str) -> Layout:
    root = f"StreetHazards/{folder}"
    return Layout(f"{root}/images/{split}/{{}}.png", f"{root}/annotations/{split}/{{}}.png", frames)


def track(folder: str, extension: str, *frames: str) -> Layout:
    label = f"{folder}/labels_masks/{{}}_labels_semantic"
    return Layout(f"{folder}/images/{{}}.{extension}", f"{label}.png", frames, (f"{label}_color.png",))


ANOMALY_TRACK = track("dataset_AnomalyTrack", "jpg", "validation0000", "validation0009", "cones3", "zebra1")
OBSTACLE_TRACK = track(
    "dataset_ObstacleTrack", "webp", *(f"validation_{number}" for number in range(1, 41)),
    "curvy-street_3", "darkasphalt2_dog_5", "snowstorm1_00_02_34", "snowstorm2_7", "driveway_9",
)  # fmt: skip
VALIDATION = tuple(f"validation_{number}" for number in (*range(1, 19), 20, *range(30, 41)))
MAUERENER = "04_Maurener_Weg_8_000000_000030"
STATIC = "0000_frankfurt_000001_046504"
ADE = "ADEChallengeData2016"
COCO = "coco_stuff10k"


def shifted(last: int) -> dict[int, int]:
    return {0: 255, **{value: value - 1 for value in range(1, last + 1)}}


SMIYC = {0: 0, 1: 1, **{value: 255 for value in range(2, 256)}}
OBSTACLES = {0: 255, 1: 0, **{v: 1 for v in range(2, 201)}, **{v: 255 for v in range(201, 256)}}
HAZARDS = {value: value - 1 for value in range(1, 14)}
CAMVID = {**{value: value for value in range(11)}, 11: 255}
FISHY = {0: 0, 1: 1}

# Data set, layout, frames that it has of the layout's (None: all), {label value: target}, frames when
# complete, protocol and track of anomaly sets (None: a closed set).
TABLE = [
    ("camvid_train", camvid("train"), None, CAMVID, 367, None),
    ("camvid_val", camvid("val"), None, CAMVID, 101, None),
    ("camvid_test", camvid("test"), None, CAMVID, 233, None),
    (
        "camvid_ood_test", Layout("camvid/test_ood/{}.png", "camvid/testannot_ood/{}.png", ("0001TP_00855",)),
        None, {**{value: 0 for value in range(11)}, 11: 255, 12: 1}, 233, ("pooled", None),
    ),
    *(
        (f"camvid_{split}_without_{name}", camvid(split), None, CAMVID | {value: 255}, count, None)
        for split, count in (("train", 367), ("val", 101))
        for name, value in (("bicyclist", 10), ("signsymbol", 6), ("fence", 7))
    ),
    *(
        (
            f"camvid_val_unknown_{name}", camvid("val"), None,
            {**{other: int(other == value) for other in range(11)}, 11: 255}, 101, ("pooled", None),
        )
        for name, value in (("bicyclist", 10), ("signsymbol", 6), ("fence", 7))
    ),
    (
        "cityscapes_train", cityscapes("train", "aachen_000000_000019", "ulm_000093_000019"), None,
        dict(enumerate(TRAIN_IDS)), 2975, None,
    ),
    (
        "cityscapes_val", cityscapes("val", "frankfurt_000001_046504"), None, dict(enumerate(TRAIN_IDS)),
        500, None,
    ),
    ("cityscapes_test", cityscapes("test", "berlin_000000_000019"), None, None, 1525, None),
    ("road_anomaly21_validation", ANOMALY_TRACK, ANOMALY_TRACK.frames[:2], SMIYC, 10, ("smiyc", "anomaly")),
    ("road_anomaly21_test", ANOMALY_TRACK, ANOMALY_TRACK.frames[2:], None, 100, ("smiyc", "anomaly")),
    ("road_anomaly21_all", ANOMALY_TRACK, None, SMIYC, 110, ("smiyc", "anomaly")),
    ("road_obstacle21_validation", OBSTACLE_TRACK, VALIDATION, SMIYC, 30, ("smiyc", "obstacle")),
    ("road_obstacle21_test", OBSTACLE_TRACK, OBSTACLE_TRACK.frames[40:42], None, 327, ("smiyc", "obstacle")),
    ("road_obstacle21_all", OBSTACLE_TRACK, None, SMIYC, 442, ("smiyc", "obstacle")),
    (
        "lost_and_found_train", lost_and_found("train", "01_Hanns_Klemm_Str_45_000000_000190"), None,
        OBSTACLES, 1036, ("pooled", None),
    ),
    ("lost_and_found_test", lost_and_found("test", MAUERENER), None, OBSTACLES, 1203, ("pooled", None)),
    (
        "fishyscapes_lost_and_found",
        Layout(
            f"lost_and_found/leftImg8bit/test/04_Maurener_Weg_8/{MAUERENER}_leftImg8bit.png",
            "fishyscapes_lostandfound/{}_labels.png", (f"0000_{MAUERENER}",),
            (f"lost_and_found/leftImg8bit/train/a/a_0_{MAUERENER}_leftImg8bit.png",),
        ),
        None, FISHY, 100, ("fishyscapes", None),
    ),
    *(
        (
            f"fishyscapes_static_v{version}",
            Layout(
                f"fs_val_v{version}/images/{{}}.png", f"fs_val_v{version}/{{}}_labels.png", (STATIC,),
                (f"fs_val_v{version}/{{}}_rgb.npz",),
            ),
            None, FISHY, count, ("fishyscapes", None),
        )
        for version, count in ((1, 30), (2, None), (3, None))
    ),
    (
        "road_anomaly",
        Layout(
            "RoadAnomaly_jpg/frames/{}.jpg", "RoadAnomaly_jpg/frames/{}.labels/labels_semantic.png",
            ("animals01_Guiding_Horses", "zebra02"),
            ("RoadAnomaly_jpg/frames/{}.labels/labels_instance.png", "RoadAnomaly_jpg/frame_list.json"),
        ),
        None, {0: 0, 1: 0, 2: 1}, 60, ("pooled", None),
    ),
    ("street_hazards_train", hazards("train", "training", "t1/10", "t1/2"), None, HAZARDS, 5125, None),
    ("street_hazards_validation", hazards("train", "validation", "t4/1"), None, HAZARDS, 1031, None),
    (
        "street_hazards_test", hazards("test", "test", "t5/300", "t6/300"), None,
        {**{value: 0 for value in range(1, 14)}, 14: 1}, 1500, ("per_image", None),
    ),
    (
        "street_hazards_test_closed_set", hazards("test", "test", "t5/300", "t6/300"), None,
        HAZARDS | {14: 255}, 1500, None,
    ),
    *(
        (
            f"ade20k_{split}",
            Layout(
                f"{ADE}/images/{folder}/{{}}.jpg", f"{ADE}/annotations/{folder}/{{}}.png", ("ADE_00000001",),
                # What Detectron2's preparation adds; its values are other ones.
                (f"{ADE}/annotations_detectron2/{folder}/{{}}.png",),
            ),
            None, shifted(150), count, None,
        )
        for split, folder, count in (("train", "training", 20210), ("val", "validation", 2000))
    ),
    *(
        (
            f"coco_stuff10k_{split}",
            Layout(
                f"{COCO}/images/{folder}/{{}}.jpg", f"{COCO}/annotations/{folder}/{{}}_labelTrainIds.png",
                ("COCO_train2014_000000000077",),
            ),
            None, shifted(171), count, None,
        )
        for split, folder, count in (("train", "train2014", 9000), ("test", "test2014", 1000))
    ),
]  # fmt: skip
ROWS = {row[0]: row for row in TABLE}


@pytest.fixture
def make_tree(datasets_root, save_image):
    """``make_tree(layout, raw)``: the layout's files; labels hold ``raw`` (H, W) uint8. SMIYC's are there
    for validation frames only."""

    def make(layout: Layout, raw: np.ndarray) -> None:
        for frame in layout.frames:
            image, label = layout.paths(frame)
            save_image(datasets_root / image, np.zeros((*SIZE, 3), np.uint8))
            if "Track" not in image or frame.startswith("validation"):
                save_image(datasets_root / label, raw)
            for path in layout.beside:
                first, scene = frame.split("_")[0], frame.rsplit("_", 2)[0]
                beside = datasets_root / path.format(frame, first=first, scene=scene)
                beside.parent.mkdir(parents=True, exist_ok=True)
                beside.touch()

    return make


def test_the_table_has_every_public_data_set():
    others = {spec.name for spec in BENCHMARKS} - set(ROWS)
    full = {"cityscapes_full_train", "cityscapes_full_val"}
    assert others == full | {"lost_and_found_test_no_known", "fishyscapes_static"}


@pytest.mark.parametrize("name", ROWS)
def test_frames_and_labels(datasets_root, make_tree, save_image, name):
    _, layout, frames, mapping, count, protocol = ROWS[name]
    values = sorted(mapping or {0: 0})
    make_tree(layout, np.resize(np.array(values, np.uint8), SIZE))
    metadata, records = MetadataCatalog.get(name), get_records(name)
    assert metadata.expected_count == count and metadata.ignore_label == 255
    kind = "closed_set" if protocol is None else "anomaly"
    assert metadata.evaluator_type == kind
    assert (metadata.protocol, metadata.component_track) == (protocol or ("pooled", None))
    frames = sorted(layout.frames if frames is None else frames)
    assert [record["image_id"] for record in records] == [frame.replace("/", "__") for frame in frames]
    for record, frame in zip(records, frames, strict=True):
        image, label = layout.paths(frame)
        assert record["file_name"] == str(datasets_root / image)
        if mapping is None or ("Track" in image and not frame.startswith("validation")):
            with pytest.raises(ValueError, match=f"{name}: the label of .*{frame}.* is withheld"):
                read_label(record, metadata)
            continue
        assert record["sem_seg_file_name"] == str(datasets_root / label)
        expected = np.resize([mapping[value] for value in values], SIZE)
        np.testing.assert_array_equal(read_label(record, metadata), expected)
    foreign = [value for value in range(256) if value not in {*values, 255}]
    if mapping and foreign:
        path = save_image(records[-1]["sem_seg_file_name"], np.full(SIZE, foreign[0], np.uint8))
        with pytest.raises(ValueError, match=f"{re.escape(path)}: label value {foreign[0]} "):
            read_label(records[-1], metadata)


def test_classes():
    detectron2 = MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes
    assert MetadataCatalog.get("cityscapes_val").stuff_classes == detectron2
    assert MetadataCatalog.get("cityscapes_val").stuff_colors[10] == [70, 130, 180]  # sky
    assert MetadataCatalog.get("ade20k_train").stuff_classes[149] == "flag"
    assert MetadataCatalog.get("camvid_train").stuff_classes[::5] == ["Sky", "Tree", "Bicyclist"]
    without = MetadataCatalog.get("camvid_val_without_fence").stuff_classes
    assert without == MetadataCatalog.get("camvid_train").stuff_classes
    hazards_classes = MetadataCatalog.get("street_hazards_test").stuff_classes
    assert (hazards_classes[0], hazards_classes[12]) == ("unlabeled", "traffic sign")
    coco = MetadataCatalog.get("coco_stuff10k_train").stuff_classes
    # Values of MMSegmentation's files, less one.
    assert {index: coco[index] for index in (0, 79, 80, 137, 170)} == {
        0: "person", 79: "toothbrush", 80: "banner", 137: "road", 170: "wood"
    }  # fmt: skip
    for name, spec in registered_specs().items():
        assert len(set(spec.classes)) == len(spec.classes), name
        assert spec.colors is None or len(set(spec.colors)) == len(spec.classes), name


def test_parts_that_are_missing_are_named(datasets_root, make_tree):
    _, layout, *_ = ROWS["fishyscapes_lost_and_found"]
    make_tree(layout, np.zeros(SIZE, np.uint8))
    (datasets_root / layout.image).unlink()
    with pytest.raises(LayoutError, match=f"0000_.* belongs to the frame {MAUERENER}, which .* lacks"):
        get_records("fishyscapes_lost_and_found")
    (datasets_root / "lost_and_found").rename(datasets_root / "elsewhere")
    with pytest.raises(MissingDataError, match="no folder .*lost_and_found; set GMM_ANOMALY_LOST_AND_FOUND"):
        get_records("fishyscapes_lost_and_found")


def test_static_frames_must_be_made(datasets_root, make_tree):
    layout = ROWS["fishyscapes_static_v3"][1]
    make_tree(layout, np.zeros(SIZE, np.uint8))
    (datasets_root / layout.paths(STATIC)[0]).unlink()
    with pytest.raises(LayoutError, match=f"1 of 1 images are not made yet, first {STATIC}.*--version 3`"):
        get_records("fishyscapes_static_v3")
    (datasets_root / "fs_val_v3/stray_labels.png").touch()
    with pytest.raises(LayoutError, match="stray_labels.png is not named NUMBER_FRAME_labels.png"):
        get_records("fishyscapes_static_v3")


def test_no_known_leaves_out_empty_labels_and_known_kinds(datasets_root):
    """1203 frames of real scenes: 17 fall to their position in the order of ids, the known kinds to their
    names."""
    known = ("01_Hanns_Klemm_Str_45_000006", "01_Hanns_Klemm_Str_45_000007", "10_Schlossberg_9_000004")
    scenes = (
        *known,
        "02_Hanns_Klemm_Str_44_000000",
        # A scene whose name begins like another's: the order is that of ids, not of folders.
        "02_Hanns_Klemm_Str_4_000001",
        "10_Schlossberg_9_000003",
        "15_Rechbergstr_Deckenpfronn_000001",
    )
    frames = sorted(f"{scenes[number % len(scenes)]}_{number:06d}" for number in range(1203))
    layout = lost_and_found("test", "")
    for frame in frames:
        for path in map(datasets_root.joinpath, layout.paths(frame)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = [record["image_id"] for record in get_records("lost_and_found_test_no_known")]
    left_out = ("15_Rechbergstr_Deckenpfronn", *known)
    kept = [frame for position, frame in enumerate(frames) if position not in EMPTY_LABELS]
    assert found == [frame for frame in kept if not frame.startswith(left_out)]
    assert len(EMPTY_LABELS) == 17 and 0 < len(kept) - len(found) < len(kept)
    metadata = MetadataCatalog.get("lost_and_found_test_no_known")
    assert (metadata.protocol, metadata.component_track) == ("smiyc", "obstacle")
    assert metadata.expected_count == 1043
    (datasets_root / layout.paths(frames[0])[0]).unlink()
    (datasets_root / layout.paths(frames[0])[1]).unlink()
    with pytest.raises(LayoutError, match="no_known: .*all 1203 test frames, but .* has 1202;"):
        get_records("lost_and_found_test_no_known")


def write_list(path: Path, image: str, label: str, lines: bool = False) -> None:
    entry = {"dbName": "StreetHazards", "width": 1280, "fpath_img": image, "fpath_segm": label}
    path.write_text(json.dumps(entry) + "\n" if lines else json.dumps([entry]))


def test_lists_of_street_hazards_come_first(datasets_root, make_tree):
    root = datasets_root / "StreetHazards"
    make_tree(hazards("test", "test", "t5/300", "t6/300"), np.ones(SIZE, np.uint8))
    # Beside the split, relative to it; then the benchmark's own, in the root.
    write_list(root / "test/test.odgt", "images/test/t5/300.png", "annotations/test/t5/300.png")
    assert [record["image_id"] for record in get_records("street_hazards_test")] == ["t5__300"]
    for lines in (False, True):
        paths = ("test/images/test/t6/300.png", "test/annotations/test/t6/300.png")
        write_list(root / "test.odgt", *paths, lines)
        assert [record["image_id"] for record in get_records("street_hazards_test")] == ["t6__300"]
    (root / "test.odgt").write_text("{}")
    with pytest.raises(LayoutError, match=r"test.odgt is not a list of \{fpath_img, fpath_segm\}"):
        get_records("street_hazards_test")
    write_list(root / "test.odgt", "test/images/test/t5/301.png", "test/annotations/test/t5/301.png")
    with pytest.raises(LayoutError, match="test.odgt lists .*t5/301.png, which is not there; paths are rel"):
        get_records("street_hazards_test")


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_real_camvid(camvid_root, monkeypatch, split, count):
    monkeypatch.setenv("GMM_ANOMALY_CAMVID", str(camvid_root))
    records, metadata = get_records(f"camvid_{split}"), MetadataCatalog.get(f"camvid_{split}")
    assert len(records) == count
    labels = [read_label(record, metadata) for record in records[:: count // 6]]
    assert all(label.shape == (360, 480) for label in labels)
    assert read_image(records[0], "RGB").shape == (360, 480, 3)
    assert set(np.unique(labels)) == {*range(11), 255}


def test_real_camvid_ood_agrees_with_its_test_frames(camvid_root, monkeypatch):
    """Outside the pasted animal CamVid-OOD's frame and void are the test frame's."""
    monkeypatch.setenv("GMM_ANOMALY_CAMVID", str(camvid_root))
    if not (camvid_root / "test_ood").is_dir():
        pytest.skip(f"{camvid_root} has no CamVid-OOD")
    plain = {record["image_id"]: record for record in get_records("camvid_test")}
    for record in get_records("camvid_ood_test")[::40]:
        label = read_label(record, MetadataCatalog.get("camvid_ood_test"))
        known = read_label(plain[record["image_id"]], MetadataCatalog.get("camvid_test"))
        assert set(np.unique(label)) <= {0, 1, 255} and (label == 1).any()
        np.testing.assert_array_equal((label == 255)[label != 1], (known == 255)[label != 1])


def test_the_popular_pack_by_the_names_of_its_sets(datasets_root, save_image, caplog):
    folders = {
        "road_anomaly": "RoadAnomaly", "road_anomaly21_validation": "RoadAnomaly21",
        "road_obstacle21_validation": "RoadObsticle21", "fishyscapes_static": "fs_static",
        "fishyscapes_lost_and_found": "FS_LostFound_full",
    }  # fmt: skip
    pack = datasets_root / "Validation_Dataset"
    for name, folder in folders.items():
        for stem, kind in (("0", "png"), ("1", "jpg"), ("10", "webp")):
            # In copies of the pack Road Anomaly's objects are 1 or 2.
            anomaly = 2 if name == "road_anomaly" and stem == "0" else 1
            label = np.resize(np.array([0, anomaly, 255], np.uint8), SIZE)
            save_image(pack / folder / "images" / f"{stem}.{kind}", np.zeros((*SIZE, 3), np.uint8))
            save_image(pack / folder / "labels_masks" / f"{stem}.png", label)
        records, metadata = get_records(name), MetadataCatalog.get(name)
        assert len(records) == 3
        for record in records:
            assert np.array_equal(np.unique(read_label(record, metadata)), [0, 1, 255]), name
    # The benchmark's own download comes first, with a line; there 1 is known.
    own = datasets_root / "RoadAnomaly_jpg" / "frames"
    save_image(own / "a.jpg", np.zeros((*SIZE, 3), np.uint8))
    save_image(own / "a.labels/labels_semantic.png", np.resize(np.array([0, 1, 2], np.uint8), SIZE))
    (record,) = get_records("road_anomaly")
    assert record["file_name"].startswith(str(own)) and "is there twice" in caplog.text
    assert read_label(record, MetadataCatalog.get("road_anomaly")).ravel()[:3].tolist() == [0, 0, 1]
