"""Score maps in files: NumPy arrays, 16-bit PNG, and HDF5 as SegmentMeIfYouCan has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

SCORE_EXTENSIONS = (".npy", ".npz", ".hdf5", ".h5", ".png")
HDF5_KEY = "value"  # the one data set in a score file of SegmentMeIfYouCan


class ScoreMap(NamedTuple):
    """A map as a program saved it.

    Attributes:
        values: (H, W) floats or integers as they were saved, higher = more anomalous.
        ranks_only: the numbers have no unit: only their order means something (PNG without a scale).
    """

    values: np.ndarray
    ranks_only: bool = False


class ScoreFileError(ValueError):
    """A file that can be read and is no score map; the message names it and says why."""


def read_score_map(path: Path, key: str | None = None) -> ScoreMap:
    """Read a map; axes of length 1 before and after height and width are dropped.

    ``.npy``; ``.npz`` and ``.hdf5``/``.h5``: the array named ``key`` (HDF5: "value"; npz: its only one, by
    default); ``.png``: one channel of 16 bits. A PNG's text chunks "scale" and "offset" give score = pixel ·
    scale + offset (scale above 0); without them the pixels are taken as they are, which keeps the ranks.

    Raises:
        ValueError: the file is not there, cannot be decoded, or holds something else; the message names it.
        ImportError: an HDF5 file, and h5py is not installed.
    """
    suffix = path.suffix.lower()
    h5py = require_h5py() if suffix in (".hdf5", ".h5") else None
    ranks_only = False
    if key is not None and suffix in (".npy", ".png"):
        raise ScoreFileError(f"{path}: --key names an array in .npz and HDF5 files; leave it out")
    try:
        if h5py is not None:
            with h5py.File(path, "r") as file:
                names = [name for name in file if isinstance(file[name], h5py.Dataset)]
                wanted = key or (HDF5_KEY if HDF5_KEY in names else None)
                values = np.asarray(file[_choose(path, wanted, names)][()])
        elif suffix == ".png":
            values, ranks_only = _read_png(path)
        else:
            values = np.load(path, allow_pickle=False)
            if not isinstance(values, np.ndarray):
                with values as archive:
                    values = archive[_choose(path, key, archive.files)]
    except ScoreFileError:
        raise
    except Exception as error:  # zipfile, h5py, Pillow and NumPy raise OSError, KeyError, EOFError, ...
        raise ValueError(
            f"{path}: cannot be read, it may be corrupt or cut off ({type(error).__name__}: {error})"
        ) from error
    found = values
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or not values.size:
        raise ScoreFileError(f"{path}: a score map must be (H, W), found shape {found.shape}")
    if values.dtype.kind not in "fiu":
        raise ScoreFileError(f"{path}: scores must be real numbers, found {values.dtype}")
    return ScoreMap(values, ranks_only)


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


def _choose(path: Path, key: str | None, names: Sequence[str]) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        wanted = "one array" if key is None else f"an array {key!r}"
        found = ", ".join(names) or "none"
        raise ScoreFileError(f"{path}: expected {wanted}, found {found}; name it with --key")
    return str(key)


def _read_png(path: Path) -> tuple[np.ndarray, bool]:
    """Scores, and whether only their ranks mean something."""
    with Image.open(path) as image:
        image.load()
        text: dict[str, str] = getattr(image, "text", {})
        # Older versions of Pillow read 16 bits as mode "I".
        if image.format != "PNG" or not (image.mode.startswith("I;16") or image.mode == "I"):
            raise ScoreFileError(
                f"{path}: a PNG of scores must have one channel of 16 bits, found {image.format} of mode "
                f"{image.mode}; a picture of a score map cannot be evaluated"
            )
        pixels = np.asarray(image).astype(np.uint16)
    if not {"scale", "offset"} & text.keys():
        return pixels.astype(np.float32), True
    try:
        scale, offset = float(text.get("scale", 1)), float(text.get("offset", 0))
    except ValueError as error:
        raise ScoreFileError(f"{path}: its text chunks scale and offset must be numbers ({error})") from None
    if not (0 < scale < np.inf and np.isfinite(offset)):
        raise ScoreFileError(
            f"{path}: its scale must be above 0 and its offset finite, found {scale} and {offset}"
        )
    return pixels * np.float64(scale) + offset, False
