"""The two tracks of SegmentMeIfYouCan (Chan et al., NeurIPS 2021 Datasets and Benchmarks).

Only the validation frames come with labels; the others are for submissions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .label_rule import ANOMALY, IGNORE_LABEL
from .pairing import LABEL_EXTENSIONS, Record, list_files, pair
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

ANOMALY_ROOT = DataRoot(("dataset_AnomalyTrack",), "GMM_ANOMALY_ANOMALY_TRACK")
OBSTACLE_ROOT = DataRoot(("dataset_ObstacleTrack",), "GMM_ANOMALY_OBSTACLE_TRACK")

# Whatever is neither 0 nor 1 is void.
LABEL_MAP = ((0, 0), (1, 1), *((value, IGNORE_LABEL) for value in range(2, 256)))

ANOMALY_COUNTS = {"validation": 10, "test": 100, "all": 110}
OBSTACLE_COUNTS = {"validation": 30, "test": 327, "all": 442}

# The benchmark's rules for the obstacle track: scenes that its test split leaves out, and frames of the scene
# "validation" that its validation split leaves out.
NOT_IN_OBSTACLE_TEST = frozenset({"snowstorm1", "snowstorm2", "driveway", "validation"})
NOT_IN_OBSTACLE_VALIDATION = ("validation_19", *(f"validation_2{digit}" for digit in range(1, 10)))

_SOURCE = "Download {name} ({url}; linked from segmentmeifyoucan.com/datasets) and unpack it."


def in_anomaly_split(stem: str, split: str) -> bool:
    """Whether a frame of RoadAnomaly21 belongs to "validation", "test" or "all"."""
    return split == "all" or (split == "validation") == stem.startswith("validation")


def in_obstacle_split(stem: str, split: str) -> bool:
    """Whether a frame of RoadObstacle21 belongs to "validation", "test" or "all"."""
    scene = stem.split("_")[0]
    if split == "validation":
        return scene == "validation" and not stem.startswith(NOT_IN_OBSTACLE_VALIDATION)
    return split == "all" or scene not in NOT_IN_OBSTACLE_TEST


@dataclass(frozen=True)
class TrackSplit:
    """``images/STEM.*`` and, for validation frames, ``labels_masks/STEM_labels_semantic.png``."""

    split: str
    contains: Callable[[str, str], bool]

    def needs(self) -> tuple[str, ...]:
        return ("images",) if self.split == "test" else ("images", "labels_masks")

    def __call__(self, root: Path) -> list[Record]:
        images = self._chosen(list_files(root / "images"))
        if self.split == "test":
            return pair(images, None)
        labels = list_files(root / "labels_masks", suffix="_labels_semantic", extensions=LABEL_EXTENSIONS)
        return pair(images, self._chosen(labels), every_image_labelled=self.split == "validation")

    def _chosen(self, files: dict[str, Path]) -> dict[str, Path]:
        return {stem: path for stem, path in files.items() if self.contains(stem, self.split)}


def register_smiyc() -> None:
    anomaly_source = _SOURCE.format(name="dataset_AnomalyTrack.zip", url="zenodo.org/record/5270237")
    obstacle_source = _SOURCE.format(name="dataset_ObstacleTrack.zip", url="zenodo.org/record/5281633")
    tracks = (
        ("road_anomaly21", "anomaly", ANOMALY_ROOT, ANOMALY_COUNTS, in_anomaly_split, anomaly_source),
        ("road_obstacle21", "obstacle", OBSTACLE_ROOT, OBSTACLE_COUNTS, in_obstacle_split, obstacle_source),
    )
    for name, track, root, counts, contains, source in tracks:
        for split, count in counts.items():
            layout = TrackSplit(split, contains)
            register(
                DatasetSpec(
                    name=f"{name}_{split}",
                    evaluator_type=ANOMALY,
                    layout=layout,
                    root=root,
                    needs=layout.needs(),
                    label_map=LABEL_MAP,
                    expected_count=count,
                    protocol="smiyc",
                    component_track=track,
                    source=source,
                )
            )
