"""RoadAnomaly21, the anomaly track of SegmentMeIfYouCan."""

from __future__ import annotations

from .roots import DataRoot
from .smiyc import register_track

ROOT = DataRoot(("dataset_AnomalyTrack",), "GMM_ANOMALY_ANOMALY_TRACK")
COUNTS = {"validation": 10, "test": 100, "all": 110}


def in_split(stem: str, split: str) -> bool:
    """Whether a frame belongs to "validation", "test" or "all"."""
    return split == "all" or (split == "validation") == stem.startswith("validation")


def register_road_anomaly21() -> None:
    register_track("road_anomaly21", "anomaly", ROOT, COUNTS, in_split, "zenodo.org/record/5270237")
