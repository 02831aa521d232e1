"""ADE20K, the 150 classes of the 2016 scene parsing challenge (Zhou et al., CVPR 2017)."""

from __future__ import annotations

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from .label_rule import CLOSED_SET, one_based
from .pairing import FolderPairs
from .registration import register_splits
from .roots import DataRoot

# Where Detectron2 and MMSegmentation expect the unpacked archive.
ROOT = DataRoot(("ADEChallengeData2016", "ade/ADEChallengeData2016"), "GMM_ANOMALY_ADE20K")

CLASSES = tuple(ADE20K_SEM_SEG_CATEGORIES)
# Our split, the archive's folder and its number of frames.
SPLITS = (("train", "training", 20210), ("val", "validation", 2000))


def register_ade20k() -> None:
    register_splits(
        "ade20k",
        [
            (split, FolderPairs(f"images/{folder}", f"annotations/{folder}"), count)
            for split, folder, count in SPLITS
        ],
        evaluator_type=CLOSED_SET,
        root=ROOT,
        classes=CLASSES,
        label_map=one_based(len(CLASSES)),  # 0 is "other objects"
        source="Download ADEChallengeData2016.zip (data.csail.mit.edu/places/ADEchallenge) and unpack it.",
    )
