"""Images and labels of folders, matched by stem whatever the extension."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LayoutError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
LABEL_EXTENSIONS = (".png",)

Record = dict[str, Any]


def list_files(
    folder: Path,
    *,
    suffix: str = "",
    extensions: Iterable[str] = IMAGE_EXTENSIONS,
    recursive: bool = False,
    exclude: Container[Path] = (),
) -> dict[str, Path]:
    """Files of ``folder`` by key: their path in the folder without ``suffix`` and extension, sorted.

    Args:
        folder: an existing folder.
        suffix: what the stem must end with, for example "_leftImg8bit"; other files are passed over.
        extensions: lower case, with the dot.
        recursive: look into subfolders as well.
        exclude: files to pass over.

    Raises:
        LayoutError: no such folder, or two files with the same key.
    """
    if not folder.is_dir():
        raise LayoutError(f"there is no folder {folder}")
    wanted = frozenset(extensions)
    found: dict[str, Path] = {}
    for current, folders, names in os.walk(folder, followlinks=True):
        if not recursive:
            folders.clear()
        for name in names:
            stem, extension = os.path.splitext(name)
            if name.startswith(".") or extension.lower() not in wanted or not stem.endswith(suffix):
                continue
            path = Path(current, name)
            if path in exclude:
                continue
            key = (path.parent.relative_to(folder) / stem.removesuffix(suffix)).as_posix()
            if key in found:
                raise LayoutError(
                    f"two files stand for one frame: {found[key]} and {path}; remove one of them"
                )
            found[key] = path
    return dict(sorted(found.items()))


def pair(
    images: Mapping[str, Path],
    labels: Mapping[str, Path] | None,
    *,
    every_image_labelled: bool = True,
    short_ids: bool = False,
) -> list[Record]:
    """Records of the images, with the label of the same key.

    Args:
        images: by key, from ``list_files``.
        labels: by key; None where labels are withheld.
        every_image_labelled: whether an image without a label is an error. A label without an image always
            is.
        short_ids: ``image_id`` leaves the subfolders out, because the stems alone are unique.

    Raises:
        LayoutError: names the files that lack their counterpart.
    """
    if labels is None:
        labels = {}
        every_image_labelled = False
    unlabelled = [path for key, path in images.items() if key not in labels]
    if unlabelled and every_image_labelled:
        raise LayoutError(f"{_named(unlabelled, 'image')} without a label of the same name")
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
    shown = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
    return f"{len(paths)} {kind}{'s' if len(paths) > 1 else ''} ({shown})"


@dataclass(frozen=True)
class FolderPairs:
    """Layout of a folder of images beside a folder of labels.

    Args:
        images: folder under the root.
        labels: folder under the root; None where labels are withheld.
        image_suffix: end of the images' stems that the labels' lack.
        label_suffix: end of the labels' stems that the images' lack.
        recursive: both folders have subfolders of the same names.
        every_image_labelled, short_ids: see ``pair``.
    """

    images: str
    labels: str | None
    image_suffix: str = ""
    label_suffix: str = ""
    recursive: bool = False
    every_image_labelled: bool = True
    short_ids: bool = False

    def needs(self) -> tuple[str, ...]:
        """Folders that have to be under the root."""
        return (self.images,) if self.labels is None else (self.images, self.labels)

    def __call__(self, root: Path) -> list[Record]:
        images = list_files(root / self.images, suffix=self.image_suffix, recursive=self.recursive)
        labels = None
        if self.labels is not None:
            labels = list_files(
                root / self.labels,
                suffix=self.label_suffix,
                extensions=LABEL_EXTENSIONS,
                recursive=self.recursive,
            )
        return pair(images, labels, every_image_labelled=self.every_image_labelled, short_ids=self.short_ids)
