"""The synthetic streets as data sets: synthetic_street_train, synthetic_street_val and
synthetic_street_anomaly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from .label_rule import ANOMALY, CLOSED_SET, IGNORE_LABEL
from .pairing import FolderPairs, Record
from .registration import DatasetSpec, register
from .synthetic import ANOMALY_LABEL, CLASSES, PALETTE, RENDERER_VERSION, StreetSplit, cache_split
from .synthetic.render import MIN_HEIGHT, MIN_WIDTH

NAMES = ("synthetic_street_train", "synthetic_street_val", "synthetic_street_anomaly")


@dataclass(frozen=True)
class StreetSettings:
    """Sizes, numbers and seed; as the config keys ``DATASETS.SYNTHETIC.*``, with the same defaults."""

    height: int = 256
    width: int = 512
    num_train: int = 400
    num_val: int = 50
    num_anomaly: int = 50
    seed: int = 0
    cache_dir: str = ""

    def splits(self) -> tuple[StreetSplit, ...]:
        """The three splits; their seeds differ from one another and from those of any other ``seed``."""
        numbers = (self.num_train, self.num_val, self.num_anomaly)
        return tuple(
            StreetSplit(name, number, 3 * self.seed + place, self.height, self.width, name == NAMES[2])
            for place, (name, number) in enumerate(zip(NAMES, numbers, strict=True))
        )


@dataclass(frozen=True)
class _StreetFrames:
    """Records of a split: of files where there is a cache folder, else what the renderer needs."""

    split: StreetSplit
    cache_dir: str

    def __call__(self, root: Path) -> list[Record]:
        split = self.split
        if self.cache_dir:
            size = f"{split.num_images}x{split.height}x{split.width}"
            kind = f"{split.name}_{size}_seed{split.seed}_v{RENDERER_VERSION}"
            folder = Path(self.cache_dir).expanduser().absolute() / kind
            cache_split(split, folder)
            return FolderPairs("images", "labels")(folder)
        render = {
            "seed": split.seed,
            "height": split.height,
            "width": split.width,
            "anomalies": split.anomalies,
        }
        return [
            {
                "file_name": f"{split.name}/{index:06d}",
                "image_id": f"{index:06d}",
                "render": render | {"index": index},
            }
            for index in range(split.num_images)
        ]


def register_streets(settings: StreetSettings | None = None) -> None:
    """Register the three data sets, replacing those of other settings."""
    settings = settings or StreetSettings()
    known = tuple((value, 0) for value in range(len(CLASSES)))
    for split in settings.splits():
        register(
            DatasetSpec(
                name=split.name,
                evaluator_type=ANOMALY if split.anomalies else CLOSED_SET,
                layout=_StreetFrames(split, settings.cache_dir),
                root=None,
                classes=() if split.anomalies else CLASSES,
                colors=None if split.anomalies else PALETTE,
                label_map=(*known, (ANOMALY_LABEL, 1), (IGNORE_LABEL, IGNORE_LABEL))
                if split.anomalies
                else None,
                expected_count=split.num_images,
            ),
            overwrite=True,
        )


def configure_synthetic(cfg: CfgNode) -> None:
    """Register the synthetic streets anew with the config's ``DATASETS.SYNTHETIC``.

    Raises:
        ValueError: a size, number or seed that cannot be.
    """
    node = cfg.DATASETS.SYNTHETIC
    least = {
        "HEIGHT": MIN_HEIGHT,
        "WIDTH": MIN_WIDTH,
        "NUM_TRAIN": 1,
        "NUM_VAL": 1,
        "NUM_ANOMALY": 1,
        "SEED": 0,
    }
    for key, value in least.items():
        if node[key] < value:
            raise ValueError(f"DATASETS.SYNTHETIC.{key}: expected {value} or more, found {node[key]}")
    register_streets(
        StreetSettings(
            height=node.HEIGHT,
            width=node.WIDTH,
            num_train=node.NUM_TRAIN,
            num_val=node.NUM_VAL,
            num_anomaly=node.NUM_ANOMALY,
            seed=node.SEED,
            cache_dir=node.CACHE_DIR,
        )
    )
