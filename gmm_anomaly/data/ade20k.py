"""ADE20K, the 150 classes of the 2016 scene parsing challenge (Zhou et al., CVPR 2017)."""

from __future__ import annotations

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from .label_rule import CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

# Where Detectron2 and MMSegmentation expect the unpacked archive.
ROOT = DataRoot(("ADEChallengeData2016", "ade/ADEChallengeData2016"), "GMM_ANOMALY_ADE20K")

CLASSES = tuple(ADE20K_SEM_SEG_CATEGORIES)
# 0 is "other objects".
LABEL_MAP = ((0, IGNORE_LABEL), *((value, value - 1) for value in range(1, len(CLASSES) + 1)))

# Our split, the archive's folder and its number of frames.
SPLITS = (("train", "training", 20210), ("val", "validation", 2000))


def register_ade20k() -> None:
    for split, folder, count in SPLITS:
        layout = FolderPairs(f"images/{folder}", f"annotations/{folder}")
        register(
            DatasetSpec(
                name=f"ade20k_{split}",
                evaluator_type=CLOSED_SET,
                layout=layout,
                root=ROOT,
                needs=layout.needs(),
                classes=CLASSES,
                label_map=LABEL_MAP,
                expected_count=count,
                source="Download ADEChallengeData2016.zip (address: datasets/README.md) and unpack it.",
            )
        )
