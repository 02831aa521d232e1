"""Unpacking the benchmarks' zip archives."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .atomic import replacing

# Larger than any image, label or overlay of the benchmarks.
MAX_FILE_SIZE = 2**30


def unpack_flat(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Unpack the wanted files of a zip archive into one folder, without the archive's own folders.

    Resumable: a file that is there with the archive's size is kept. Each file's checksum is verified while it
    is unpacked, and it gets its name only then.

    Args:
        archive: zip file.
        folder: made if it is not there.
        wanted: whether to unpack a file, by its name without folders.

    Returns:
        The files, sorted.

    Raises:
        FileNotFoundError: no such archive.
        ValueError: not a zip file, a damaged one, one with a member that points outside of it, with a wanted
            file that is a link, is encrypted or is larger than 1 GiB, or with two wanted files of one name.
        OSError: the disk has not the room that the files need.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as stored:
            return _unpack(stored, archive, folder, wanted)
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError) as error:
        raise ValueError(f"{archive} is no complete zip archive ({error}); download it again") from error


def _unpack(
    stored: zipfile.ZipFile, archive: Path, folder: Path, wanted: Callable[[str], bool]
) -> list[Path]:
    chosen: dict[str, zipfile.ZipInfo] = {}
    for member in stored.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise ValueError(
                f"{archive} has the member {member.filename!r}, which points outside of the archive"
            )
        if member.is_dir() or path.name.startswith(".") or not wanted(path.name):
            continue
        if path.name in chosen:
            raise ValueError(f"{archive} has two files named {path.name}")
        _require_plain(archive, member)
        chosen[path.name] = member
    _require_room(archive, folder, chosen)
    for name, member in tqdm(sorted(chosen.items()), desc=f"unpacking {archive.name}", unit="file"):
        target = folder / name
        if target.is_file() and target.stat().st_size == member.file_size:
            continue
        with stored.open(member) as source, replacing(target) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
    return [folder / name for name in sorted(chosen)]


def _require_plain(archive: Path, member: zipfile.ZipInfo) -> None:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"{archive} has the link {member.filename!r}; only plain files are unpacked")
    if member.flag_bits & 1:
        raise ValueError(f"{archive} has the encrypted file {member.filename!r}; get the archive without")
    # No more than the size it states is ever read of a member.
    if member.file_size > MAX_FILE_SIZE:
        raise ValueError(
            f"{archive}: {member.filename!r} would be {member.file_size / 2**30:.1f} GiB, expected at most "
            f"{MAX_FILE_SIZE // 2**30}; no file of the benchmarks is so large"
        )


def _require_room(archive: Path, folder: Path, chosen: dict[str, zipfile.ZipInfo]) -> None:
    needed = sum(member.file_size for name, member in chosen.items() if not (folder / name).is_file())
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{archive} unpacks to {needed / 2**30:.1f} GiB, {existing} has {free / 2**30:.1f} GiB left; "
            "make room, if it is the benchmark's archive"
        )
