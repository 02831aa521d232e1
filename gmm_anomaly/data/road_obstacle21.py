"""RoadObstacle21, the obstacle track of SegmentMeIfYouCan."""

from __future__ import annotations

from .roots import DataRoot
from .smiyc import register_track

ROOT = DataRoot(("dataset_ObstacleTrack",), "GMM_ANOMALY_OBSTACLE_TRACK")
COUNTS = {"validation": 30, "test": 327, "all": 442}

# The benchmark's rules: scenes that its test split leaves out, and frames of the scene "validation" that its
# validation split leaves out.
NOT_IN_TEST = frozenset({"snowstorm1", "snowstorm2", "driveway", "validation"})
NOT_IN_VALIDATION = ("validation_19", *(f"validation_2{digit}" for digit in range(1, 10)))


def in_split(stem: str, split: str) -> bool:
    """Whether a frame belongs to "validation", "test" or "all"."""
    scene = stem.split("_")[0]
    if split == "validation":
        return scene == "validation" and not stem.startswith(NOT_IN_VALIDATION)
    return split == "all" or scene not in NOT_IN_TEST


def register_road_obstacle21() -> None:
    register_track("road_obstacle21", "obstacle", ROOT, COUNTS, in_split, "zenodo.org/record/5281633")
