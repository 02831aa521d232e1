"""Road Anomaly (Lis et al., ICCV 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .label_rule import ANOMALY, IGNORE_LABEL
from .pairing import Record, list_files, pair
from .registration import register
from .roots import DataRoot
from .spec import DatasetSpec

ROOT = DataRoot(("RoadAnomaly_jpg", "RoadAnomaly/RoadAnomaly_jpg"), "GMM_ANOMALY_ROAD_ANOMALY")
COUNT = 60


@dataclass(frozen=True)
class RoadAnomalyFrames:
    """``frames/NAME.jpg`` with ``frames/NAME.labels/labels_semantic.png``."""

    def __call__(self, root: Path) -> list[Record]:
        frames = root / "frames"
        images = list_files(frames)
        labels = {key: frames / f"{key}.labels" / "labels_semantic.png" for key in images}
        return pair(images, {key: path for key, path in labels.items() if path.is_file()})


def register_road_anomaly() -> None:
    register(
        DatasetSpec(
            name="road_anomaly",
            evaluator_type=ANOMALY,
            layout=RoadAnomalyFrames(),
            root=ROOT,
            needs=("frames",),
            # 1 is refused: it would be an anomaly for some evaluators and known for others.
            label_map=((0, 0), (2, 1), (IGNORE_LABEL, IGNORE_LABEL)),
            expected_count=COUNT,
            source="Download RoadAnomaly_jpg.zip (epfl.ch/labs/cvlab/data/road-anomaly) and unpack it.",
        )
    )
