"""How the preparation scripts begin and end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .errors import MissingDataError
from .roots import DataRoot

INTERRUPTED = 130  # what shells give for Ctrl-C


def run_preparation(prepare: Callable[[], str]) -> int:
    """Print what ``prepare`` says it made, or what is wrong.

    Returns:
        Exit status: 0; 1 after an error that a message explains; 130 after Ctrl-C.
    """
    try:
        print(prepare())
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def require_folder(path: Path, root: DataRoot) -> None:
    """Raise MissingDataError, with advice, unless the download's folder is there."""
    if not path.is_dir():
        raise MissingDataError(f"there is no folder {path}; {root.advice()}")
