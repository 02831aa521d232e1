"""NumPy files whose type and shape are judged before a value is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

# Judges shape and type; raises ValueError.
Accept = Callable[[tuple[int, ...], np.dtype], None]

# What versions 3 and later add are names of records.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class RefusedArrayError(ValueError):
    """A readable array that is not taken; the message names the file and says why."""


def read_npy(path: Path, accept: Accept) -> np.ndarray:
    """The array of a ``.npy`` file; nothing is unpickled.

    Raises:
        ValueError: what ``accept`` raises, or the file is no array; other errors of NumPy for damaged files.
    """
    with path.open("rb") as file:
        return _read(path, file, path.stat().st_size, accept)


def read_npz(path: Path, choose: Callable[[list[str]], str], accept: Accept) -> np.ndarray:
    """One array of a ``.npz`` file, named by ``choose``. Errors as ``read_npy``, and of zipfile and zlib."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        member = members[choose(list(members))]
        # What NumPy writes. Others, such as LZMA, can ask for gigabytes before a byte is unpacked.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedArrayError(f"{path}: arrays must be stored or deflated, as numpy.savez does it")
        with archive.open(member) as file:
            return _read(path, file, member.file_size, accept)


def _read(path: Path, file: IO[bytes], size: int, accept: Accept) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise RefusedArrayError(f"{path}: its .npy format {version} holds records, not numbers")
    shape, _, dtype = _HEADERS[version](file)
    accept(shape, dtype)
    # Memory for the whole array would be taken before its end is missed.
    if min(shape, default=0) < 0 or size < math.prod(shape) * dtype.itemsize:
        raise RefusedArrayError(f"{path}: cannot be read, it is shorter than its header says")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
