"""Unpacking the benchmarks' zip archives."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .atomic import replacing


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
        ValueError: not a zip file, a damaged one, one with a member that points outside of it, or with two
            wanted files of one name.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as stored:
            return _unpack(stored, archive, folder, wanted)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive} is no complete zip archive ({error}); download it again") from error


def _unpack(
    stored: zipfile.ZipFile, archive: Path, folder: Path, wanted: Callable[[str], bool]
) -> list[Path]:
    chosen: dict[str, zipfile.ZipInfo] = {}
    for member in stored.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise ValueError(
                f"{archive} has the member {member.filename!r}, which points outside of the archive"
            )
        if member.is_dir() or path.name.startswith(".") or not wanted(path.name):
            continue
        if path.name in chosen:
            raise ValueError(f"{archive} has two files named {path.name}")
        chosen[path.name] = member
    for name, member in tqdm(sorted(chosen.items()), desc=f"unpacking {archive.name}", unit="file"):
        target = folder / name
        if target.is_file() and target.stat().st_size == member.file_size:
            continue
        with stored.open(member) as source, replacing(target) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
    return [folder / name for name in sorted(chosen)]
