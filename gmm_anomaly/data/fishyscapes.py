"""The public validation sets of Fishyscapes (Blum et al., IJCV 2021): LostAndFound and Static."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import cityscapes, lost_and_found
from .errors import LayoutError
from .label_rule import ANOMALY, ANOMALY_LABEL_MAP
from .pairing import LABEL_EXTENSIONS, Record, list_files, make_record, pair
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

LOST_AND_FOUND_ROOT = DataRoot(("fishyscapes_lostandfound",), "GMM_ANOMALY_FISHYSCAPES_LOST_AND_FOUND")
STATIC_ROOTS = {
    version: DataRoot((f"fs_val_v{version}",), f"GMM_ANOMALY_FISHYSCAPES_STATIC_V{version}")
    for version in (1, 2, 3)
}

LOST_AND_FOUND_COUNT = 100
# The number of frames is known for the first version only.
STATIC_COUNTS = {1: 30, 2: None, 3: None}

# "0000_04_Maurener_Weg_8_000000_000030": the benchmark's number, then the id of the frame it is based on.
NUMBERED = re.compile(r"(\d+)_(.+)")

# Images that prepare_fishyscapes_static.py makes, beside the labels and overlays of the download.
STATIC_IMAGES = "images"


def list_labels(folder: Path) -> dict[str, Path]:
    """The benchmark's flat ``NUMBER_BASE_labels.png`` by "NUMBER_BASE". Raises LayoutError for another
    name."""
    labels = list_files(folder, suffix="_labels", extensions=LABEL_EXTENSIONS)
    for key, path in labels.items():
        if not NUMBERED.fullmatch(key):
            raise LayoutError(f"{path} is not named NUMBER_FRAME_labels.png, as the benchmark's labels are")
    return labels


def base_id(key: str) -> str:
    """Id of the LostAndFound or Cityscapes frame that a label "NUMBER_BASE" belongs to."""
    match = NUMBERED.fullmatch(key)
    assert match is not None
    return match.group(2)


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


@dataclass(frozen=True)
class StaticFrames:
    """Labels in the download's flat folder, images that were made from Cityscapes."""

    version: int

    def __call__(self, root: Path) -> list[Record]:
        command = f"python datasets/prepare_fishyscapes_static.py --version {self.version}"
        labels = list_labels(root)
        if not labels:
            return []
        if not (root / STATIC_IMAGES).is_dir():
            raise LayoutError(f"the images are not made yet; run {command}")
        images = list_files(root / STATIC_IMAGES)
        unmade = [key for key in labels if key not in images]
        if unmade:
            raise LayoutError(
                f"{len(unmade)} of {len(labels)} images are not made, first {unmade[0]}; run {command}"
            )
        return pair(images, labels)


def register_fishyscapes() -> None:
    shared = {
        "evaluator_type": ANOMALY,
        "label_map": tuple(ANOMALY_LABEL_MAP.items()),
        "protocol": "fishyscapes",
    }
    register(
        DatasetSpec(
            name="fishyscapes_lost_and_found",
            layout=LostAndFoundMasks(),
            root=LOST_AND_FOUND_ROOT,
            expected_count=LOST_AND_FOUND_COUNT,
            source="Download fishyscapes_lostandfound.zip (fishyscapes.com/dataset), unpack it alone.",
            companions=((lost_and_found.ROOT, "the images of LostAndFound (leftImg8bit, train and test)"),),
            **shared,
        )
    )
    for version, root in STATIC_ROOTS.items():
        register(
            DatasetSpec(
                name=f"fishyscapes_static_v{version}",
                layout=StaticFrames(version),
                root=root,
                expected_count=STATIC_COUNTS[version],
                source=(
                    f"Download fs_val_v{version}.zip (address: datasets/README.md), unpack it and "
                    "make its images with `python datasets/prepare_fishyscapes_static.py --version "
                    f"{version}`, which needs Cityscapes' validation images ({cityscapes.ROOT.variable})."
                ),
                **shared,
            )
        )
