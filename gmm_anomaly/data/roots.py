"""Where a data set lies: an environment variable of its own, or a folder under ``$DETECTRON2_DATASETS``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

COMMON_VARIABLE = "DETECTRON2_DATASETS"


def common_root() -> Path:
    """Absolute path of ``$DETECTRON2_DATASETS``, read from the environment at each call."""
    return Path(os.environ.get(COMMON_VARIABLE) or "datasets").expanduser().absolute()


@dataclass(frozen=True)
class DataRoot:
    """Root of a benchmark's data.

    Args:
        folders: names it may have under ``$DETECTRON2_DATASETS`` (default ``datasets``); the first one that
            exists counts, and the first one is advised.
        variable: environment variable that names the root itself and comes before the common one.
    """

    folders: tuple[str, ...]
    variable: str

    def path(self) -> Path:
        """Absolute path, read from the environment at each call; it need not exist."""
        named = os.environ.get(self.variable)
        if named:
            return Path(named).expanduser().absolute()
        candidates = [common_root() / folder for folder in self.folders]
        return next((path for path in candidates if path.is_dir()), candidates[0])

    def advice(self) -> str:
        """Where to put the data, to follow "download it, then"."""
        folder = self.folders[0]
        return (
            f"set {self.variable} to it, or put it at ${COMMON_VARIABLE}/{folder} "
            f"(datasets/{folder} if that variable is not set)"
        )


@dataclass(frozen=True)
class FixedRoot:
    """Root that was given as a path: the data set is the user's own."""

    folder: str

    def path(self) -> Path:
        return Path(self.folder).expanduser().absolute()

    def advice(self) -> str:
        return "the path was given when the data set was registered"
