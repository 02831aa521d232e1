"""Score maps in files: NumPy arrays, 16-bit PNG, and HDF5 as SegmentMeIfYouCan has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import Image

HDF5_KEY = "value"  # the one data set in a score file of SegmentMeIfYouCan


@dataclass(frozen=True)
class ScoreMap:
    """A map as a program saved it.

    Attributes:
        values: (H, W) float16, float32 or float64, higher = more anomalous.
        ranks_only: the numbers have no unit: only their order means something (PNG without a scale).
    """

    values: np.ndarray
    ranks_only: bool = False


def read_score_map(path: Path, key: str | None = None) -> ScoreMap:
    """Read a map; axes of length 1 before and after height and width are dropped.

    ``.npy``; ``.npz`` and ``.hdf5``/``.h5``: the array named ``key`` (HDF5: "value"; npz: its only one, by
    default); ``.png``: one channel of 16 bits. A PNG's text chunks "scale" and "offset" give score = pixel ·
    scale + offset (scale above 0); without them the pixels are taken as they are, which keeps the ranks.

    Raises:
        ValueError: the file cannot be decoded, or holds something else; the message names it.
        ImportError: an HDF5 file, and h5py is not installed.
    """
    try:
        read = _READERS[path.suffix.lower()]
    except KeyError:
        raise ValueError(f"{path}: score maps are {', '.join(SCORE_EXTENSIONS)} files") from None
    found = read(path, key)
    values = found.values
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{path}: a score map must be (H, W), found shape {found.values.shape}")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path}: scores must be real numbers, found {values.dtype}")
    if values.dtype.kind != "f":
        values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    return ScoreMap(values, found.ranks_only)


def require_h5py() -> ModuleType:
    """The module h5py. Raises ImportError with the command that installs it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "HDF5 score files need h5py, an optional dependency: pip install h5py (or, in a checkout of this "
            "project, pip install -e '.[smiyc]')"
        ) from error
    return h5py


def _read_npy(path: Path, key: str | None) -> ScoreMap:
    return ScoreMap(_decoded(path, lambda: np.load(path, allow_pickle=False)))


def _read_npz(path: Path, key: str | None) -> ScoreMap:
    def load() -> np.ndarray:
        with np.load(path, allow_pickle=False) as archive:
            return archive[_choose(path, key, list(archive))]

    return ScoreMap(_decoded(path, load))


def _read_hdf5(path: Path, key: str | None) -> ScoreMap:
    h5py = require_h5py()

    def load() -> np.ndarray:
        with h5py.File(path, "r") as file:
            names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
            wanted = key or (HDF5_KEY if HDF5_KEY in names else None)
            return file[_choose(path, wanted, names)][()]

    return ScoreMap(_decoded(path, load))


def _read_png(path: Path, key: str | None) -> ScoreMap:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path}: cannot be decoded as a PNG; it is corrupt or cut off")
    if pixels.ndim != 2 or pixels.dtype != np.uint16:
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        raise ValueError(
            f"{path}: a PNG of scores must have one channel of 16 bits, found {channels} of "
            f"{8 * pixels.itemsize}; a picture of a score map cannot be evaluated"
        )
    with Image.open(path) as image:
        text = getattr(image, "text", {})
    given = [name for name in ("scale", "offset") if name in text]
    if not given:
        return ScoreMap(pixels.astype(np.float32), ranks_only=True)
    try:
        scale, offset = float(text.get("scale", 1)), float(text.get("offset", 0))
    except ValueError as error:
        raise ValueError(f"{path}: its text chunks {' and '.join(given)} must be numbers ({error})") from None
    if not (0 < scale < np.inf and np.isfinite(offset)):
        raise ValueError(
            f"{path}: its scale must be above 0 and its offset finite, found {scale} and {offset}"
        )
    return ScoreMap(pixels * np.float64(scale) + offset)


def _choose(path: Path, key: str | None, names: list[str]) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        wanted = "one array" if key is None else f"an array {key!r}"
        raise ValueError(f"{path}: expected {wanted}, found {', '.join(names) or 'none'}; name it with --key")
    return key


def _decoded(path: Path, load: Callable[[], Any]) -> np.ndarray:
    try:
        found = load()
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # zipfile, h5py and NumPy raise OSError, KeyError, EOFError, BadZipFile, ...
        raise ValueError(
            f"{path}: cannot be read, it is corrupt or cut off ({type(error).__name__}: {error})"
        ) from error
    return np.asarray(found)


_READERS: dict[str, Callable[[Path, str | None], ScoreMap]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".hdf5": _read_hdf5,
    ".h5": _read_hdf5,
    ".png": _read_png,
}
SCORE_EXTENSIONS = tuple(_READERS)
