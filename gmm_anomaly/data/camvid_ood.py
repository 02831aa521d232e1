"""CamVid-OOD (Besnier et al., ICCV 2021): CamVid's test frames with an animal pasted into each."""

from __future__ import annotations

from .camvid import CLASSES, ROOT, VOID
from .label_rule import ANOMALY, IGNORE_LABEL
from .pairing import FolderPairs
from .registration import register_splits

ANIMAL = 12
COUNT = 233

_SOURCE = (
    'Download CamVidOOD.zip (release "CamVid OOD" of github.com/valeoai/obsnet) and put its test_ood and '
    "testannot_ood into CamVid's folder."
)


def register_camvid_ood() -> None:
    known = ((value, 0) for value in range(len(CLASSES)))
    register_splits(
        "camvid_ood",
        [("test", FolderPairs("test_ood", "testannot_ood"), COUNT)],
        evaluator_type=ANOMALY,
        root=ROOT,
        label_map=(*known, (VOID, IGNORE_LABEL), (ANIMAL, 1)),
        source=_SOURCE,
    )
