"""Results on disk, each file complete or not at all, and score maps kept until what needs them is known."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.metrics.score_counts import own_pages
from gmm_anomaly.visualization import encode_png


def remove_partial(folder: Path) -> int:
    """Remove what killed processes left of ``replacing`` in ``folder``; returns how many files that were."""
    left = list(folder.glob(".*.partial"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, by which weights are told apart."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def save_array(target: Path, array: np.ndarray) -> None:
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def save_picture(target: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG."""
    with replacing(target) as temporary:
        temporary.write_bytes(encode_png(picture))


def json_text(value: Any, *, digits: int | None = None) -> str:
    """Strict JSON: NaN becomes null, infinities the strings "inf" and "-inf".

    Args:
        digits: round to so many significant digits, and put everything on one line.
    """
    if digits is None:
        return json.dumps(_jsonable(value, digits), indent=2, allow_nan=False)
    return json.dumps(_jsonable(value, digits), separators=(",", ":"), allow_nan=False)


def save_json(target: Path, value: Any, *, digits: int | None = None) -> None:
    """Write :func:`json_text`."""
    text = json_text(value, digits=digits)
    with replacing(target) as temporary:
        temporary.write_text(text + "\n")


def _jsonable(value: Any, digits: int | None) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_jsonable(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        return value if digits is None else float(f"{value:.{digits}g}")
    return str(value) if isinstance(value, Path) else value


class KeptScores:
    """Arrays by key: in memory up to a budget, beyond it in a temporary folder that :meth:`clear` removes.

    The folder also goes when the object is collected or the interpreter ends.

    Args:
        budget: bytes kept in memory.
        folder: where the temporary folder is made, by default where the system has its own; a full data set
            of large frames can take many gigabytes.
    """

    def __init__(self, budget: int, folder: str | Path | None = None) -> None:
        self.budget, self._parent = budget, folder
        self._kept: dict[Hashable, np.ndarray | Path] = {}
        self._bytes = self._written = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def keys(self) -> list[Any]:
        return list(self._kept)

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Keep a copy of ``array``."""
        if self._bytes + array.nbytes <= self.budget:
            copy = own_pages(array.shape, array.dtype)
            copy[...] = array
            self._kept[key] = copy
            self._bytes += array.nbytes
            return
        if self._folder is None:
            if self._parent is not None:
                Path(self._parent).mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="kept_scores_", dir=self._parent)
        path = Path(self._folder.name) / f"{self._written}.npy"
        self._written += 1
        np.save(path, array, allow_pickle=False)
        self._kept[key] = path

    def get(self, key: Hashable) -> np.ndarray:
        """The array under ``key``; raises KeyError if there is none."""
        kept = self._kept[key]
        return np.load(kept, allow_pickle=False) if isinstance(kept, Path) else kept

    def drop(self, key: Hashable) -> None:
        """Forget the array under ``key``; raises KeyError if there is none."""
        kept = self._kept.pop(key)
        if isinstance(kept, Path):
            kept.unlink()
        else:
            self._bytes -= kept.nbytes

    def clear(self) -> None:
        """Forget everything and remove the temporary folder."""
        self._kept.clear()
        self._bytes = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
