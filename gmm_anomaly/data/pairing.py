"""Where the files of a data set lie, and which label belongs to which image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMON_VARIABLE = "DETECTRON2_DATASETS"
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
# How names begin of what systems and programs keep beside a user's files, .ipynb_checkpoints and ._image.png
# among them.
HIDDEN = (".", "@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE", "__MACOSX")
LABEL_EXTENSIONS = (".png",)

Record = dict[str, Any]
PairFiles = Callable[[Path, "Path | None"], Iterable["tuple[str | Path, str | Path | None]"]]


class MissingDataError(FileNotFoundError):
    """The folder of a data set is not there."""


class LayoutError(ValueError):
    """The folder is there, but not what has to be in it: a folder, an image, a label."""


@dataclass(frozen=True)
class DataRoot:
    """Root of a data set.

    Args:
        folders: names it may have under ``$DETECTRON2_DATASETS`` (default ``datasets``); the first one that
            exists counts, and the first one is advised.
        variable: environment variable that names the root itself and comes before the common one; "": the
            data set is a user's own, and the one folder is its path.
    """

    folders: tuple[str, ...]
    variable: str = ""

    def path(self) -> Path:
        """Absolute path, read from the environment at each call; it need not exist."""
        candidates = self.candidates()
        return next((path for path in candidates if path.is_dir()), candidates[0])

    def candidates(self) -> list[Path]:
        """Absolute paths that it may have, by precedence; none need exist."""
        named = os.environ.get(self.variable) if self.variable else self.folders[0]
        if named:
            return [Path(named).expanduser().absolute()]
        common = Path(os.environ.get(COMMON_VARIABLE) or "datasets").expanduser().absolute()
        return [common / folder for folder in self.folders]

    def advice(self) -> str:
        """Where to put the data, to follow "download it, then"."""
        if not self.variable:
            return "the path was given when the data set was registered"
        folder = self.folders[0]
        return (
            f"set {self.variable} to it, or put it at ${COMMON_VARIABLE}/{folder} "
            f"(datasets/{folder} if that variable is not set)"
        )

    def require(self) -> Path:
        """The path. Raises MissingDataError, with advice, if there is no such folder."""
        if not self.path().is_dir():
            raise MissingDataError(f"there is no folder {self.path()}; {self.advice()}")
        return self.path()


def list_files(
    folder: Path,
    *,
    suffix: str = "",
    extensions: tuple[str, ...] = IMAGE_EXTENSIONS,
    recursive: bool = False,
    exclude: Container[Path] = (),
) -> dict[str, Path]:
    """Files of ``folder`` by key: their path in the folder without ``suffix`` and extension, sorted. Links
    are followed; files and folders that are ``HIDDEN``, files whose stems lack the suffix, and those to
    ``exclude`` are passed over.

    Raises:
        LayoutError: no such folder, or two files with the same key.
    """
    if not folder.is_dir():
        raise LayoutError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in visible_files(folder, recursive=recursive):
        if path.suffix.lower() in extensions and path.stem.endswith(suffix) and path not in exclude:
            key = (path.parent.relative_to(folder) / path.stem.removesuffix(suffix)).as_posix()
            if key in found:
                raise LayoutError(f"two files stand for one frame: {found[key]} and {path}; remove one")
            found[key] = path
    return dict(sorted(found.items()))


def visible_files(folder: str | Path, *, recursive: bool = True) -> Iterator[Path]:
    """Files in a folder and below, but for ``HIDDEN`` ones and those in such folders. Links are followed."""
    for current, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if recursive and not name.startswith(HIDDEN)]
        yield from (Path(current, name) for name in names if not name.startswith(HIDDEN))


def is_hidden(path: Path, given: str | Path) -> bool:
    """Whether a path has ``HIDDEN`` parts beyond those of the folder or pattern that led to it."""
    return any(part.startswith(HIDDEN) and part not in Path(given).parts for part in path.parts)


def pair(
    images: Mapping[str, Path],
    labels: Mapping[str, Path] | None,
    *,
    every_image_labelled: bool = True,
    short_ids: bool = False,
) -> list[Record]:
    """Records of the images, with the label of the same key (None: all are withheld).

    Args:
        every_image_labelled: whether an image without a label is an error. A label without an image always
            is.
        short_ids: ``image_id`` leaves the subfolders out, because the stems alone are unique.

    Raises:
        LayoutError: names the files that lack their counterpart.
    """
    if labels is None:
        labels, every_image_labelled = {}, False
    unlabelled = [path for key, path in images.items() if key not in labels]
    if unlabelled and every_image_labelled:
        raise LayoutError(f"{_named(unlabelled, 'image')} without a label PNG of the same name")
    orphans = [path for key, path in labels.items() if key not in images]
    if orphans:
        raise LayoutError(f"{_named(orphans, 'label')} without an image of the same name")
    return [
        make_record(key.rsplit("/", 1)[-1] if short_ids else key, path, labels.get(key))
        for key, path in images.items()
    ]


def make_record(key: str, image: Path, label: Path | None) -> Record:
    """A record of Detectron2's catalog; its ``image_id`` is ``key`` made safe for a file name."""
    record = {"file_name": str(image), "image_id": key.replace("/", "__")}
    if label is not None:
        record["sem_seg_file_name"] = str(label)
    return record


def _named(paths: list[Path], kind: str) -> str:
    shown = ", ".join([*map(str, paths[:3]), *(["..."] if len(paths) > 3 else [])])
    return f"{len(paths)} {kind}{'s' if len(paths) > 1 else ''} ({shown})"


@dataclass(frozen=True)
class FolderPairs:
    """Layout of a folder of images beside a folder of labels, matched by stem whatever the extension.

    Args:
        images: folder under the root.
        labels: folder under the root, or an absolute path; None where labels are withheld.
        image_suffix: end of the images' stems that the labels' lack.
        label_suffix: end of the labels' stems that the images' lack.
        recursive: both folders have subfolders of the same names.
        every_image_labelled, short_ids: see ``pair``.
        frames: regular expression of the keys of the frames that belong to the data set.
        lists: files under the root that come first: the first one there is names the frames, see
            ``listed_pairs``.
    """

    images: str
    labels: str | None
    image_suffix: str = ""
    label_suffix: str = ""
    recursive: bool = False
    every_image_labelled: bool = True
    short_ids: bool = False
    frames: str = ".*"
    lists: tuple[str, ...] = ()

    def __call__(self, root: Path) -> list[Record]:
        for name in self.lists:
            if (root / name).is_file():
                return listed_pairs(root / name)
        deep, labels = self.recursive, None
        if self.labels is not None:
            folder, kinds = root / self.labels, LABEL_EXTENSIONS
            labels = list_files(folder, suffix=self.label_suffix, extensions=kinds, recursive=deep)
        # Both kinds may lie in one folder.
        others = set((labels or {}).values())
        images = list_files(root / self.images, suffix=self.image_suffix, recursive=deep, exclude=others)
        for files in (images, labels or {}):
            for key in [key for key in files if not re.fullmatch(self.frames, key)]:
                del files[key]
        return pair(images, labels, every_image_labelled=self.every_image_labelled, short_ids=self.short_ids)


@dataclass(frozen=True)
class OwnFolders:
    """Images and labels in two folders given as paths, which are looked up where the process then is."""

    label_root: str | None
    image_suffix: str
    label_suffix: str
    pair_files: PairFiles | None

    def __call__(self, root: Path) -> list[Record]:
        labels = None if self.label_root is None else DataRoot((self.label_root,)).path()
        if self.pair_files is None:
            folder = None if labels is None else str(labels)
            return FolderPairs("", folder, self.image_suffix, self.label_suffix, recursive=True)(root)
        records = []
        for image, label in self.pair_files(root, labels):
            for path in (image, label):
                if path is not None and not Path(path).is_file():
                    raise LayoutError(f"pair_files names a file that is not there: {path}")
            image = Path(image)
            key = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
            name = key.with_suffix("").as_posix()
            records.append(make_record(name, image, None if label is None else Path(label)))
        return records


def listed_pairs(path: Path) -> list[Record]:
    """Records of a list file (.odgt): one JSON list, or one JSON object a line, of ``fpath_img`` and
    ``fpath_segm`` relative to its folder. The last folder and the stem make a frame's name."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        lines = ",".join(filter(str.strip, text.splitlines()))
        entries = json.loads(text if text.startswith("[") else f"[{lines}]")
        pairs = [(path.parent / entry["fpath_img"], path.parent / entry["fpath_segm"]) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise LayoutError(
            f"{path} is not a list of {{fpath_img, fpath_segm}} in JSON ({type(error).__name__}: {error})"
        ) from error
    for file in (file for files in pairs for file in files):
        if not file.is_file():
            raise LayoutError(
                f"{path} lists {file}, which is not there; paths are relative to {path.parent}. Correct the "
                "list, or remove it to have the folders listed instead"
            )
    return [make_record(f"{image.parent.name}/{image.stem}", image, label) for image, label in pairs]
