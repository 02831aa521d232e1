"""What both tracks of SegmentMeIfYouCan (Chan et al., NeurIPS 2021 Datasets and Benchmarks) have in common.

Only the validation frames come with labels; the others are for submissions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .label_rule import ANOMALY, IGNORE_LABEL
from .pairing import LABEL_EXTENSIONS, Record, list_files, pair
from .registration import register_splits
from .roots import DataRoot

# Whatever is neither 0 nor 1 is void.
LABEL_MAP = ((0, 0), (1, 1), *((value, IGNORE_LABEL) for value in range(2, 256)))


@dataclass(frozen=True)
class TrackSplit:
    """``images/STEM.*`` and, for validation frames, ``labels_masks/STEM_labels_semantic.png``.

    Args:
        split: "validation", "test" or "all".
        contains: whether a frame, given its stem, belongs to a split.
    """

    split: str
    contains: Callable[[str, str], bool]

    def needs(self) -> tuple[str, ...]:
        """Folders that have to be under the root."""
        return ("images",) if self.split == "test" else ("images", "labels_masks")

    def __call__(self, root: Path) -> list[Record]:
        images = self._chosen(list_files(root / "images"))
        if self.split == "test":
            return pair(images, None)
        labels = list_files(root / "labels_masks", suffix="_labels_semantic", extensions=LABEL_EXTENSIONS)
        return pair(images, self._chosen(labels), every_image_labelled=self.split == "validation")

    def _chosen(self, files: dict[str, Path]) -> dict[str, Path]:
        return {stem: path for stem, path in files.items() if self.contains(stem, self.split)}


def register_track(
    name: str,
    track: str,
    root: DataRoot,
    counts: Mapping[str, int],
    contains: Callable[[str, str], bool],
    record: str,
) -> None:
    """Register the splits of a track.

    Args:
        name: what the data sets' names begin with.
        track: "anomaly" or "obstacle", whose sizes the component metrics take.
        root: folder of the download, which the archive is named after.
        counts: frames of each split.
        contains: see ``TrackSplit``.
        record: where the archive lies at Zenodo.
    """
    register_splits(
        name,
        [(split, TrackSplit(split, contains), count) for split, count in counts.items()],
        evaluator_type=ANOMALY,
        root=root,
        label_map=LABEL_MAP,
        protocol="smiyc",
        component_track=track,
        source=(
            f"Download {root.folders[0]}.zip ({record}; linked from segmentmeifyoucan.com/datasets) and "
            "unpack it."
        ),
    )
