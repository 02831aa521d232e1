"""Fishyscapes LostAndFound: the benchmark's own labels over frames of LostAndFound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import lost_and_found
from .errors import LayoutError
from .fishyscapes import LABEL_MAP, PROTOCOL, base_id, list_labels
from .label_rule import ANOMALY
from .pairing import Record, list_files, make_record
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

ROOT = DataRoot(("fishyscapes_lostandfound",), "GMM_ANOMALY_FISHYSCAPES_LOST_AND_FOUND")
COUNT = 100


@dataclass(frozen=True)
class LostAndFoundMasks:
    """Labels in a flat folder, images among LostAndFound's train and test frames."""

    def __call__(self, root: Path) -> list[Record]:
        frames: dict[str, Path] = {}
        base = lost_and_found.ROOT.path()
        for split in lost_and_found.COUNTS:
            folder = base / "leftImg8bit" / split
            for key, path in list_files(folder, suffix="_leftImg8bit", recursive=True).items():
                frames[key.rsplit("/", 1)[-1]] = path
        records = []
        for key, label in list_labels(root).items():
            if base_id(key) not in frames:
                raise LayoutError(
                    f"{label} belongs to the frame {base_id(key)}, which {base}/leftImg8bit lacks"
                )
            records.append(make_record(key, frames[base_id(key)], label))
        return records


def register_fishyscapes_lost_and_found() -> None:
    register(
        DatasetSpec(
            name="fishyscapes_lost_and_found",
            evaluator_type=ANOMALY,
            layout=LostAndFoundMasks(),
            root=ROOT,
            label_map=LABEL_MAP,
            expected_count=COUNT,
            protocol=PROTOCOL,
            source="Download fishyscapes_lostandfound.zip (fishyscapes.com/dataset), unpack it alone.",
            companions=((lost_and_found.ROOT, "the images of LostAndFound (leftImg8bit, train and test)"),),
        )
    )
