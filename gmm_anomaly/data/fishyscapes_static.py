"""Fishyscapes Static: objects blended into Cityscapes' validation frames, in three versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import cityscapes
from .errors import LayoutError
from .fishyscapes import LABEL_MAP, PROTOCOL, list_labels
from .label_rule import ANOMALY
from .pairing import Record, list_files, pair
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

ROOTS = {
    version: DataRoot((f"fs_val_v{version}",), f"GMM_ANOMALY_FISHYSCAPES_STATIC_V{version}")
    for version in (1, 2, 3)
}

# The number of frames is known for the first version only.
COUNTS = {1: 30, 2: None, 3: None}

# Images that prepare_fishyscapes_static.py makes, beside the labels and overlays of the download.
IMAGES = "images"


@dataclass(frozen=True)
class StaticFrames:
    """Labels in the download's flat folder, images that were made from Cityscapes."""

    version: int

    def __call__(self, root: Path) -> list[Record]:
        command = f"python datasets/prepare_fishyscapes_static.py --version {self.version}"
        labels = list_labels(root)
        if not labels:
            return []
        if not (root / IMAGES).is_dir():
            raise LayoutError(f"the images are not made yet; run {command}")
        images = list_files(root / IMAGES)
        unmade = [key for key in labels if key not in images]
        if unmade:
            raise LayoutError(
                f"{len(unmade)} of {len(labels)} images are not made, first {unmade[0]}; run {command}"
            )
        return pair(images, labels)


def register_fishyscapes_static() -> None:
    for version, root in ROOTS.items():
        register(
            DatasetSpec(
                name=f"fishyscapes_static_v{version}",
                evaluator_type=ANOMALY,
                layout=StaticFrames(version),
                root=root,
                label_map=LABEL_MAP,
                expected_count=COUNTS[version],
                protocol=PROTOCOL,
                source=(
                    f"Download fs_val_v{version}.zip (robotics.ethz.ch/~asl-datasets/Fishyscapes), unpack it "
                    "and make its images with `python datasets/prepare_fishyscapes_static.py --version "
                    f"{version}`, which needs Cityscapes' validation images ({cityscapes.ROOT.variable})."
                ),
            )
        )
