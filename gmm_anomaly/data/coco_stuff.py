"""COCO-Stuff 10k (Caesar et al., CVPR 2018) as MMSegmentation prepares it: 80 things and 91 kinds of
stuff."""

from __future__ import annotations

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from .label_rule import CLOSED_SET, one_based
from .pairing import FolderPairs
from .registration import register_splits
from .roots import DataRoot

ROOT = DataRoot(("coco_stuff10k",), "GMM_ANOMALY_COCO_STUFF10K")

THINGS = tuple(str(category["name"]) for category in COCO_CATEGORIES if category["isthing"])
STUFF = tuple(
    "banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other "
    "ceiling-tile cloth clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence "
    "floor-marble floor-other floor-stone floor-tile floor-wood flower fog food-other fruit "
    "furniture-other grass gravel ground-other hill house leaves light mat metal mirror-stuff moss "
    "mountain mud napkin net paper pavement pillow plant-other plastic platform playingfield railing "
    "railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow solid-other stairs "
    "stone straw structural-other table tent textile-other towel tree vegetable wall-brick wall-concrete "
    "wall-other wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind "
    "window-other wood".split()
)
CLASSES = (*THINGS, *STUFF)

# Category ids of the original annotations run to 182; these were never used.
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
# Original id to the value in the prepared PNG: 0 unlabelled, 1 to 171 the classes.
PREPARED_VALUES = {
    original: value
    for value, original in enumerate(number for number in range(183) if number not in UNUSED_IDS)
}

LABEL_SUFFIX = "_labelTrainIds"
# Our split, the folder and its number of frames.
SPLITS = (("train", "train2014", 9000), ("test", "test2014", 1000))


def register_coco_stuff() -> None:
    def layout(folder: str) -> FolderPairs:
        return FolderPairs(f"images/{folder}", f"annotations/{folder}", label_suffix=LABEL_SUFFIX)

    register_splits(
        "coco_stuff10k",
        [(split, layout(folder), count) for split, folder, count in SPLITS],
        evaluator_type=CLOSED_SET,
        root=ROOT,
        classes=CLASSES,
        label_map=one_based(len(CLASSES)),
        source=(
            "Download cocostuff-10k-v1.1.zip (github.com/nightrome/cocostuff10k), unpack it and run "
            "`python datasets/prepare_coco_stuff10k.py`."
        ),
    )
