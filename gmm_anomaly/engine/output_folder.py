"""Whether a run can write where it is told to, before hours of work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def require_writable(folder: str | Path) -> None:
    """Make ``folder`` and write a file there, which is removed.

    Raises:
        OSError: that fails; names the folder, the reason and what mends it.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # As long as a block, for a full disk may still take an empty file.
            probe.write_bytes(bytes(1 << 16))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"OUTPUT_DIR: nothing can be written to {folder} ({error}{free_space(folder)}); set OUTPUT_DIR "
            "to a folder that can be written, on a disk with room for the checkpoints"
        ) from error


def free_space(folder: Path) -> str:
    """For an error: ", 12 MB are free there", or nothing where that cannot be known."""
    try:
        return f"; {shutil.disk_usage(folder).free / 1e6:.0f} MB are free there"
    except OSError:
        return ""
