"""Splits of the synthetic streets, and a folder copy of a split for those who read images from disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .labels import ANOMALY_LABEL, CLASSES, IGNORE_LABEL
from .render import render_street

# Raised with every change that alters a pixel: a cached split of another version is stale.
RENDERER_VERSION = 2


@dataclass(frozen=True)
class StreetSplit:
    """One split: ``num_images`` streets of the given size from ``seed``; ``anomalies`` adds unknown objects.

    Splits of one data set need seeds of their own: with equal seeds they hold the same streets."""

    name: str
    num_images: int
    seed: int
    height: int = 256
    width: int = 512
    anomalies: bool = False

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"{self.name}: num_images must be 1 or more, found {self.num_images}")

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8 of street ``index``."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"{self.name} has {self.num_images} images, index {index} was asked for")
        return render_street(self.seed, index, self.height, self.width, self.anomalies)


def image_file(folder: str | Path, index: int) -> Path:
    return Path(folder) / "images" / f"{index:06d}.png"


def label_file(folder: str | Path, index: int) -> Path:
    return Path(folder) / "labels" / f"{index:06d}.png"


def cache_split(split: StreetSplit, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes ``images/000000.png`` (RGB), ``labels/000000.png`` (8-bit class indices) and ``split.json``.

    Files are renamed into place when complete; a second call renders only what is missing. Returns the path.

    Raises ValueError when the folder holds another split (size, number, seed or renderer differ), unless
    ``overwrite`` is set: then its rendered files are replaced.
    """
    folder = Path(folder)
    wanted = _description(split)
    record = folder / "split.json"
    if record.exists():
        found = _read_record(record)
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing and not overwrite:
            details = "; ".join(
                f"{key}: found {found.get(key)!r}, expected {wanted[key]!r}" for key in differing
            )
            raise ValueError(
                f"{folder} holds another rendering than {split.name} asks for ({details}). "
                "Delete the folder, choose another one, or render again with overwrite=True"
            )
        if differing:
            _remove_rendered(folder)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write(record, (json.dumps(wanted, indent=2) + "\n").encode())
    # The label is written last: where it exists, the image is complete too.
    missing = [
        i
        for i in range(len(split))
        if not (label_file(folder, i).exists() and image_file(folder, i).exists())
    ]
    for index in _progress(missing, f"rendering {split.name}"):
        image, label = split[index]
        _write(image_file(folder, index), _png(image[..., ::-1]))
        _write(label_file(folder, index), _png(label))
    return folder


def _description(split: StreetSplit) -> dict[str, object]:
    return {
        "name": split.name,
        "num_images": split.num_images,
        "seed": split.seed,
        "height": split.height,
        "width": split.width,
        "anomalies": split.anomalies,
        "renderer_version": RENDERER_VERSION,
        "classes": list(CLASSES),
        "ignore_label": IGNORE_LABEL,
        "anomaly_label": ANOMALY_LABEL,
    }


def _read_record(record: Path) -> dict[str, object]:
    try:
        found = json.loads(record.read_text())
    except ValueError as error:
        raise ValueError(
            f"{record} is not valid JSON ({error}); delete the folder to render it again"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{record} must hold a JSON object, found {type(found).__name__}; delete the folder")
    return found


def _remove_rendered(folder: Path) -> None:
    (folder / "split.json").unlink()
    for name in ("images", "labels"):
        for file in (folder / name).glob("[0-9]" * 6 + ".png"):
            file.unlink()


def _png(array: np.ndarray) -> bytes:
    done, packed = cv2.imencode(".png", np.ascontiguousarray(array), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an array of shape {array.shape} as PNG")
    return packed.tobytes()


def _write(path: Path, data: bytes) -> None:
    # The process id keeps two processes that fill one folder from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _progress(indices: list[int], title: str) -> Iterable[int]:
    if not indices:
        return indices
    try:
        from tqdm import tqdm
    except ImportError:
        return _printed_progress(indices, title)
    return tqdm(indices, desc=title)


def _printed_progress(indices: list[int], title: str) -> Iterator[int]:
    for done, index in enumerate(indices):
        if done % 50 == 0:
            print(f"{title}: {done}/{len(indices)}", flush=True)
        yield index
    print(f"{title}: {len(indices)}/{len(indices)}", flush=True)
