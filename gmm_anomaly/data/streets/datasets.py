"""The synthetic streets as data sets: splits, the copy of a split on disk, and the registration of
synthetic_street_train, synthetic_street_val and synthetic_street_anomaly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from ..atomic import replacing
from ..pairing import Record
from ..reading import ANOMALY, CLOSED_SET
from ..registration import DatasetSpec, register
from .canvas import ANOMALY_LABEL, CLASSES, IGNORE_LABEL, PALETTE
from .scene import MIN_HEIGHT, MIN_WIDTH, RENDERER_VERSION, render_street

NAMES = ("synthetic_street_train", "synthetic_street_val", "synthetic_street_anomaly")


@dataclass(frozen=True)
class StreetSplit:
    """``num_images`` streets of one size from ``seed``; ``anomalies`` adds unknown objects. Splits of one
    data set need seeds of their own: with equal seeds they hold the same streets. ``cache_dir``: where the
    files of their records are kept; without it they are rendered whenever they are read."""

    name: str
    num_images: int
    seed: int
    height: int = 256
    width: int = 512
    anomalies: bool = False
    cache_dir: str = ""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8 of street ``index``."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"{self.name} has {self.num_images} images, index {index} was asked for")
        return render_street(self.seed, index, self.height, self.width, self.anomalies)

    def records(self, _root: Path | None = None) -> list[Record]:
        """The catalog's records, as a layout of :class:`DatasetSpec`: of files in a folder under
        ``cache_dir``, else what the renderer needs."""
        if self.cache_dir:
            size = f"{self.num_images}x{self.height}x{self.width}"
            name = f"{self.name}_{size}_seed{self.seed}_v{RENDERER_VERSION}"
            return cache_split(self, Path(self.cache_dir).expanduser().absolute() / name)
        records: list[Record] = []
        for index in range(self.num_images):
            name = f"{index:06d}"
            render = {key: getattr(self, key) for key in ("seed", "height", "width", "anomalies")}
            file = str(Path(self.name) / name)
            records.append({"image_id": name, "file_name": file, "render": render | {"index": index}})
        return records


def cache_split(split: StreetSplit, folder: str | Path) -> list[Record]:
    """Write a split as ``images/000000.png`` (RGB), ``labels/000000.png`` (8-bit class indices), ... and
    ``split.json``; a second call renders what is missing. Returns the records of the files.

    Raises:
        ValueError: the folder holds another split, or one of another version of the renderer.
    """
    folder = Path(folder)
    record, wanted = folder / "split.json", asdict(split) | {"renderer_version": RENDERER_VERSION}
    # The folder may be moved.
    del wanted["cache_dir"]
    found = json.loads(record.read_text()) if record.exists() else wanted
    if found != wanted:
        raise ValueError(f"{record}: expected {wanted}, found {found}. Delete the folder or choose another")
    with replacing(record) as partial:
        partial.write_text(json.dumps(wanted, indent=2) + "\n")
    missing, records = [], []
    for index in range(split.num_images):
        name = f"{index:06d}"
        image, label = folder / "images" / f"{name}.png", folder / "labels" / f"{name}.png"
        if not (image.exists() and label.exists()):
            missing.append((index, image, label))
        records.append({"image_id": name, "file_name": str(image), "sem_seg_file_name": str(label)})
    for index, *files in tqdm(missing, f"rendering {split.name}", disable=not missing):
        picture, classes = split[index]
        for file, array in zip(files, (picture[..., ::-1], classes), strict=True):
            with replacing(file) as partial:
                partial.write_bytes(cv2.imencode(".png", array)[1].tobytes())
    return records


def configure_synthetic(cfg: CfgNode) -> None:
    """Register the three data sets by the config's ``DATASETS.SYNTHETIC``, replacing those of other settings.
    The seeds of the splits differ from one another and from those of any other ``SEED``.

    Raises:
        ValueError: a size, number or seed that cannot be.
    """
    node = cfg.DATASETS.SYNTHETIC
    for key in set(node) - {"CACHE_DIR"}:
        least = {"HEIGHT": MIN_HEIGHT, "WIDTH": MIN_WIDTH, "SEED": 0}.get(key, 1)
        if node[key] < least:
            raise ValueError(f"DATASETS.SYNTHETIC.{key}: expected {least} or more, found {node[key]}")
    for place, name in enumerate(NAMES):
        number = node[("NUM_TRAIN", "NUM_VAL", "NUM_ANOMALY")[place]]
        size, seed = (node.HEIGHT, node.WIDTH), 3 * node.SEED + place
        split = StreetSplit(name, number, seed, *size, anomalies=place == 2, cache_dir=node.CACHE_DIR)
        kind: dict[str, Any] = {"classes": CLASSES, "colors": PALETTE}
        if split.anomalies:
            known = dict.fromkeys(range(len(CLASSES)), 0)
            label_map = known | {ANOMALY_LABEL: 1, IGNORE_LABEL: IGNORE_LABEL}
            kind = {"label_map": tuple(label_map.items())}
        evaluated = ANOMALY if split.anomalies else CLOSED_SET
        spec = DatasetSpec(name, evaluated, split.records, None, expected_count=number, **kind)
        register(spec, overwrite=True)
