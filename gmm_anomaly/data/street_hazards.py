"""StreetHazards (Hendrycks et al., ICML 2022), from its list files or straight from its folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LayoutError
from .label_rule import ANOMALY, CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs, Record, make_record
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

ROOT = DataRoot(("StreetHazards", "street_hazards", "streethazards"), "GMM_ANOMALY_STREET_HAZARDS")

# Names and RGB of the label values 1 to 13; 14 is the anomaly, in the test split only.
CLASSES_AND_COLORS = (
    ("unlabeled", (0, 0, 0)),
    ("building", (70, 70, 70)),
    ("fence", (190, 153, 153)),
    ("other", (250, 170, 160)),
    ("pedestrian", (220, 20, 60)),
    ("pole", (153, 153, 153)),
    ("road line", (157, 234, 50)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("vegetation", (107, 142, 35)),
    ("car", (0, 0, 142)),
    ("wall", (102, 102, 156)),
    ("traffic sign", (220, 220, 0)),
)
CLASSES = tuple(name for name, _ in CLASSES_AND_COLORS)
COLORS = tuple(color for _, color in CLASSES_AND_COLORS)
ANOMALY_VALUE = 14

COUNTS = {"train": 5125, "validation": 1031, "test": 1500}
# Folder of the download, and name of the split inside its images and annotations.
FOLDERS = {"train": ("train", "training"), "validation": ("train", "validation"), "test": ("test", "test")}

_SOURCES = {
    part: (
        f"Download streethazards_{part}.tar (people.eecs.berkeley.edu/~hendrycks) and unpack both tars into "
        "one folder."
    )
    for part in ("train", "test")
}


@dataclass(frozen=True)
class StreetHazardsSplit:
    """One split of the download's tree.

    The list files of two conventions come first: ``{training,validation,test}.odgt`` in the root with paths
    relative to the root (as the benchmark's code writes them), then ``SPLIT/SPLIT.odgt`` with paths relative
    to ``SPLIT``. Without either the folders are listed.
    """

    split: str

    def __call__(self, root: Path) -> list[Record]:
        folder, name = FOLDERS[self.split]
        for path in (root / f"{name}.odgt", root / self.split / f"{self.split}.odgt"):
            if path.is_file():
                return _listed(path)
        layout = FolderPairs(f"{folder}/images/{name}", f"{folder}/annotations/{name}", recursive=True)
        return layout(root)


def _listed(path: Path) -> list[Record]:
    """Records of a list file: one JSON list, or one JSON object a line."""
    text = path.read_text().strip()
    try:
        entries: list[dict[str, Any]] = (
            json.loads(text)
            if text.startswith("[")
            else [json.loads(line) for line in text.splitlines() if line]
        )
        pairs = [(path.parent / entry["fpath_img"], path.parent / entry["fpath_segm"]) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise LayoutError(
            f"{path} is not a list of {{fpath_img, fpath_segm}} in JSON ({type(error).__name__}: {error})"
        ) from error
    for files in pairs:
        for file in files:
            if not file.is_file():
                raise LayoutError(
                    f"{path} lists {file}, which is not there; paths are relative to {path.parent}. Correct "
                    "the list, or remove it to have the folders listed instead"
                )
    # Towns and numbers make a frame's name: .../t5/300.png.
    return [make_record(f"{image.parent.name}/{image.stem}", image, label) for image, label in pairs]


def register_street_hazards() -> None:
    known = tuple((value, value - 1) for value in range(1, ANOMALY_VALUE))
    shared = {"root": ROOT, "classes": CLASSES, "colors": COLORS}
    for split in ("train", "validation"):
        register(
            DatasetSpec(
                name=f"street_hazards_{split}",
                evaluator_type=CLOSED_SET,
                layout=StreetHazardsSplit(split),
                # Converted copies keep the validation frames elsewhere than the download.
                needs=("train",) if split == "train" else (),
                label_map=known,
                expected_count=COUNTS[split],
                source=_SOURCES["train"],
                **shared,
            )
        )
    test = {
        "layout": StreetHazardsSplit("test"),
        "needs": ("test",),
        "expected_count": COUNTS["test"],
        "source": _SOURCES["test"],
    }
    register(
        DatasetSpec(
            name="street_hazards_test",
            evaluator_type=ANOMALY,
            label_map=(*((value, 0) for value, _ in known), (ANOMALY_VALUE, 1)),
            protocol="per_image",
            **test,
            **shared,
        )
    )
    register(
        DatasetSpec(
            name="street_hazards_test_closed_set",
            evaluator_type=CLOSED_SET,
            label_map=(*known, (ANOMALY_VALUE, IGNORE_LABEL)),
            **test,
            **shared,
        )
    )
