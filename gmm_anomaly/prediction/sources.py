"""From what stands on a command line to the images and videos it means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from gmm_anomaly.data.pairing import IMAGE_EXTENSIONS

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """A file to predict; ``name`` is what the files written for it are called, without their extension."""

    path: Path
    is_video: bool

    @property
    def name(self) -> str:
        return self.path.stem


def list_sources(given: Iterable[str]) -> list[Source]:
    """Images and videos of files, folders and patterns, each once, in the order given.

    A folder means the images and videos directly in it, by name; a pattern whatever it matches, and with
    ``**`` in any depth. Hidden files are left out. A file that is named is taken whatever its extension, as a
    video if it has a video's.

    Raises:
        FileNotFoundError: no such file, a folder without images, or a pattern that matches nothing.
        ValueError: two images or two videos of one name, whose results would overwrite each other.
    """
    paths = dict.fromkeys(path for entry in given for path in _paths(entry))
    sources = [Source(path, path.suffix.lower() in VIDEO_EXTENSIONS) for path in paths]
    by_name: dict[tuple[str, bool], Source] = {}
    for source in sources:
        other = by_name.setdefault((source.name, source.is_video), source)
        if other is not source:
            raise ValueError(
                f"{other.path} and {source.path} would be written under one name, {source.name!r}; predict "
                "them in two calls with different --out"
            )
    return sources


def _paths(entry: str) -> list[Path]:
    path = Path(entry)
    if path.is_dir():
        found = _usable(path.iterdir())
        if not found:
            raise FileNotFoundError(
                f"{path}: no images or videos in this folder "
                f"({', '.join(IMAGE_EXTENSIONS + VIDEO_EXTENSIONS)})"
            )
        return found
    if path.exists():
        return [path]
    if has_magic(entry):
        found = _usable(map(Path, glob(entry, recursive=True)))
        if found:
            return found
        raise FileNotFoundError(f"{entry}: no image or video matches this pattern")
    raise FileNotFoundError(f"{entry}: no such file or folder")


def _usable(paths: Iterable[Path]) -> list[Path]:
    extensions = IMAGE_EXTENSIONS + VIDEO_EXTENSIONS
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file()
    )
