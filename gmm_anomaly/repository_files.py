"""Files that lie beside the package in the repository: configs, and scripts behind verbs of the command."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries them inside the package (setup.py).
ROOT = _PACKAGE / "repository" if (_PACKAGE / "repository").is_dir() else _PACKAGE.parent

# The model that comes along: what --weights and MODEL.WEIGHTS call it, and its file, with its config inside.
BUNDLED = "bundled"
BUNDLED_FILE = _PACKAGE / "bundled" / "road.pth"


def find_config(config: str | os.PathLike[str]) -> Path:
    """The file of a config: a path as it is, one below the repository, with or without "configs/", a name
    that only one file there has ("mask2former_swin_t"), or "bundled": that of the model that comes along.

    Raises:
        FileNotFoundError: it is in none of these places.
    """
    if config == BUNDLED:
        return BUNDLED_FILE
    for path in (Path(config).expanduser(), ROOT / config, ROOT / "configs" / config):
        if path.is_file():
            return path
    folder = ROOT / "configs"
    named = [path for path in folder.glob("*/*.yaml") if path.stem == os.fspath(config)]
    if len(named) == 1:
        return named[0]
    known = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.yaml"))]
    given = Path(config).as_posix().removeprefix("configs/")
    nearest = get_close_matches(given, known, n=1)
    meant = f"; did you mean {nearest[0]}?" if nearest else ""
    raise FileNotFoundError(f"--config-file: no file {os.fspath(config)}, here or in {ROOT}{meant}")
