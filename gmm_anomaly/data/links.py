"""Symbolic links in data sets: followed inside the data, refused where they lead out of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .errors import LayoutError
from .roots import common_root

# Folders, separated like those in PATH, that links may lead to.
VARIABLE = "GMM_ANOMALY_LINKS"


def require_inside(records: Iterable[Mapping[str, Any]], roots: Iterable[Path]) -> None:
    """Raise LayoutError if the image or label of a record lies, links resolved, outside of the data.

    Inside are ``roots``, which may be links themselves, ``$DETECTRON2_DATASETS`` with the data sets that are
    linked into it, and the folders that ``$GMM_ANOMALY_LINKS`` lists. A downloaded archive, or a list of
    files in it, can so name no file of the machine that is not data.

    Args:
        records: catalog records with "file_name" and perhaps "sem_seg_file_name".
        roots: folders of the data set and of others that it uses.
    """
    roots = [Path(root).absolute() for root in roots]
    allowed = [os.path.realpath(folder) for folder in (*roots, *_common_folders(), *_named_folders())]

    def inside(path: str) -> bool:
        return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in allowed)

    # Files share few folders.
    @cache
    def folder_inside(folder: str) -> bool:
        return inside(os.path.realpath(folder))

    for record in records:
        for key in ("file_name", "sem_seg_file_name"):
            if key not in record:
                continue
            path = os.path.abspath(record[key])
            if folder_inside(os.path.dirname(record[key])) and not os.path.islink(path):
                continue
            if not inside(os.path.realpath(record[key])):
                raise LayoutError(_explained(Path(record[key]), roots, inside))


def _common_folders() -> list[Path]:
    common = common_root()
    linked = [entry for entry in common.iterdir() if entry.is_symlink()] if common.is_dir() else []
    return [common, *linked]


def _named_folders() -> list[Path]:
    return [Path(name).expanduser() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _explained(path: Path, roots: list[Path], inside: Any) -> str:
    target = os.path.realpath(path)
    for part in (*reversed(path.parents), path):
        if part not in roots and part.is_symlink() and not inside(os.path.realpath(part)):
            target = os.path.realpath(part)
            folder = target if os.path.isdir(target) else os.path.dirname(target)
            return (
                f"the link {part} leads out of the data, to {target}; if that is meant, allow it: "
                f"export {VARIABLE}={folder}"
            )
    return (
        f"{path} lies outside of the data, in {os.path.dirname(target)}; correct the list that names it, or "
        f"allow it: export {VARIABLE}={os.path.dirname(target)}"
    )
