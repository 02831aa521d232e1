"""Cityscapes (Cordts et al., CVPR 2016): labelIds are mapped to the 19 train ids when they are read."""

from __future__ import annotations

from .label_rule import CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs
from .registration import register_splits
from .roots import DataRoot

ROOT = DataRoot(("cityscapes",), "GMM_ANOMALY_CITYSCAPES")

# (labelId, name, RGB) in the order of the train ids; the other ids up to 33 are not evaluated.
TRAIN_CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_LAST_LABEL_ID = 33

COUNTS = {"train": 2975, "val": 500, "test": 1525}

_SOURCE = (
    "Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (cityscapes-dataset.com, free "
    "registration) and unpack both into one folder."
)


def split_layout(split: str) -> FolderPairs:
    """Images of "train", "val" or "test", and the labelIds of the first two."""
    return FolderPairs(
        f"leftImg8bit/{split}",
        # The test labels in the download are placeholders.
        None if split == "test" else f"gtFine/{split}",
        image_suffix="_leftImg8bit",
        label_suffix="_gtFine_labelIds",
        recursive=True,
        short_ids=True,
    )


def register_cityscapes() -> None:
    train_ids = {label_id: train_id for train_id, (label_id, _, _) in enumerate(TRAIN_CLASSES)}
    label_map = tuple((value, train_ids.get(value, IGNORE_LABEL)) for value in range(_LAST_LABEL_ID + 1))
    register_splits(
        "cityscapes",
        [(split, split_layout(split), count) for split, count in COUNTS.items()],
        evaluator_type=CLOSED_SET,
        root=ROOT,
        classes=tuple(name for _, name, _ in TRAIN_CLASSES),
        colors=tuple(color for _, _, color in TRAIN_CLASSES),
        label_map=label_map,
        source=_SOURCE,
    )
