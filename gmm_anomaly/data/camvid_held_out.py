"""CamVid with one class held out as the unknown one, so that scores are chosen without looking at CamVid-OOD.

For a class X: ``camvid_train_without_x`` and ``camvid_val_without_x`` ignore its pixels (the class keeps its
number and is never seen); in ``camvid_val_unknown_x`` they are the anomalies.
"""

from __future__ import annotations

from .camvid import CLASSES, COLORS, COUNTS, ROOT, VOID
from .label_rule import ANOMALY, CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs
from .registration import register_splits

# Things that stand in a street, of sizes from a traffic sign to a fence.
HELD_OUT = ("Bicyclist", "SignSymbol", "Fence")

_SOURCE = "Download CamVid as for camvid_train."


def register_camvid_held_out() -> None:
    for name in HELD_OUT:
        unknown = CLASSES.index(name)
        known = [value for value in range(len(CLASSES)) if value != unknown]
        register_splits(
            "camvid",
            [
                (f"{split}_without_{name.lower()}", FolderPairs(split, f"{split}annot"), COUNTS[split])
                for split in ("train", "val")
            ],
            evaluator_type=CLOSED_SET,
            root=ROOT,
            classes=CLASSES,
            colors=COLORS,
            label_map=(*((value, value) for value in known), (unknown, IGNORE_LABEL), (VOID, IGNORE_LABEL)),
            source=_SOURCE,
        )
        register_splits(
            "camvid",
            [(f"val_unknown_{name.lower()}", FolderPairs("val", "valannot"), COUNTS["val"])],
            evaluator_type=ANOMALY,
            root=ROOT,
            label_map=(*((value, 0) for value in known), (unknown, 1), (VOID, IGNORE_LABEL)),
            source=_SOURCE,
        )
