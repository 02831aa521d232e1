"""LostAndFound (Pinggera et al., IROS 2016) and its subset NoKnown, as SegmentMeIfYouCan defines it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import LayoutError
from .label_rule import ANOMALY, IGNORE_LABEL
from .pairing import FolderPairs, Record
from .registration import register, register_splits
from .roots import DataRoot
from .spec import DatasetSpec

ROOT = DataRoot(("lost_and_found", "LostAndFound", "dataset_LostAndFound"), "GMM_ANOMALY_LOST_AND_FOUND")

COUNTS = {"train": 1036, "test": 1203}
NO_KNOWN_COUNT = 1043

# labelIds: 0 is void, 1 free road, 2 to 200 obstacles; nothing above is defined.
LABEL_MAP = (
    (0, IGNORE_LABEL),
    (1, 0),
    *((value, 1) for value in range(2, 201)),
    *((value, IGNORE_LABEL) for value in range(201, 256)),
)

# NoKnown: of the 1203 test frames in the order of their ids, these positions have empty labels ...
EMPTY_LABELS = (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793)
# ... and these frames show obstacles of known kinds.
KNOWN_KINDS = (
    "15_Rechbergstr_Deckenpfronn",
    "01_Hanns_Klemm_Str_45_000006",
    "01_Hanns_Klemm_Str_45_000007",
    "10_Schlossberg_9_000004",
)

_SOURCE = (
    "Download leftImg8bit.zip and gtCoarse.zip of LostAndFound (6d-vision.com/lostandfounddataset) and "
    "unpack both into one folder."
)


def split_layout(split: str) -> FolderPairs:
    """Images and labelIds of "train" or "test"; the ids are unique over the scenes."""
    return FolderPairs(
        f"leftImg8bit/{split}",
        f"gtCoarse/{split}",
        image_suffix="_leftImg8bit",
        label_suffix="_gtCoarse_labelIds",
        recursive=True,
        short_ids=True,
    )


@dataclass(frozen=True)
class NoKnown:
    """The test frames without empty labels and without obstacles of known kinds."""

    def __call__(self, root: Path) -> list[Record]:
        records = sorted(split_layout("test")(root), key=lambda record: record["image_id"])
        if len(records) != COUNTS["test"]:
            raise LayoutError(
                f"NoKnown leaves frames out by their position among all {COUNTS['test']} test frames, but "
                f"{root} has {len(records)}; unpack the complete test split"
            )
        return [
            record
            for position, record in enumerate(records)
            if position not in EMPTY_LABELS and not record["image_id"].startswith(KNOWN_KINDS)
        ]


def register_lost_and_found() -> None:
    register_splits(
        "lost_and_found",
        [(split, split_layout(split), count) for split, count in COUNTS.items()],
        evaluator_type=ANOMALY,
        root=ROOT,
        label_map=LABEL_MAP,
        source=_SOURCE,
    )
    register(
        DatasetSpec(
            name="lost_and_found_test_no_known",
            evaluator_type=ANOMALY,
            layout=NoKnown(),
            root=ROOT,
            needs=split_layout("test").needs(),
            label_map=LABEL_MAP,
            expected_count=NO_KNOWN_COUNT,
            protocol="smiyc",
            component_track="obstacle",
            source=_SOURCE,
        )
    )
