"""Which checkpoints a run has written, oldest first, so that a damaged one can be passed over."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path

from gmm_anomaly.data.atomic import replacing

logger = logging.getLogger(__name__)

FILE = "checkpoint_history.json"
TAG = "last_checkpoint"


class CheckpointHistory:
    """The run's checkpoints that ``--resume`` may go on from, in ``checkpoint_history.json``.

    Files of earlier runs in the folder are not among them: they are neither resumed nor removed.

    Args:
        folder: of the checkpoints.

    Attributes:
        names: file names, oldest first; empty until ``find_usable`` or ``add``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.names: list[str] = []

    def find_usable(self) -> Path:
        """The last checkpoint that is whole; what came after it is forgotten. Each damaged one is logged.

        Raises:
            FileNotFoundError: there is none; lists what was wrong with each.
        """
        listed, tag = self._read(), self.folder / TAG
        if tag.is_file():
            last = tag.read_text().strip()
            # The tag may have been set back by hand.
            listed = [*(listed[: listed.index(last)] if last in listed else listed), last]
        flaws = []
        while listed:
            path = self.folder / listed[-1]
            flaw = find_flaw(path)
            if flaw is None:
                if flaws:
                    logger.warning("Going on from the checkpoint before: %s", path)
                self.names = listed
                return path
            flaws.append(f"{path} {flaw}")
            logger.warning("Checkpoint %s %s", path, flaw)
            listed.pop()
        raise FileNotFoundError(
            f"--resume: no checkpoint in {self.folder} can be used: {'; '.join(flaws) or 'none is listed'}. "
            "Restore one of them, or start anew without --resume (MODEL.WEIGHTS FILE takes over the weights "
            "of another file)"
        )

    def add(self, name: str) -> None:
        """List a checkpoint that has been written as the last one."""
        self.names = [known for known in self.names if known != name] + [name]
        self._write()

    def keep_last(self, number: int) -> None:
        """Remove all but the last ``number`` checkpoints from disk."""
        old, self.names = self.names[:-number], self.names[-number:]
        if old:
            self._write()
        for name in old:
            (self.folder / name).unlink(missing_ok=True)

    def _read(self) -> list[str]:
        try:
            names = json.loads((self.folder / FILE).read_text())["checkpoints"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged, only the last checkpoint is known", self.folder / FILE)
            return []
        # Others than the trainer may have removed files, by hand for example.
        return [name for name in names if (self.folder / name).exists()]

    def _write(self) -> None:
        with replacing(self.folder / FILE) as temporary:
            temporary.write_text(json.dumps({"checkpoints": self.names}, indent=2) + "\n")


def find_flaw(path: Path) -> str | None:
    """What keeps a file from being read as a checkpoint, or None. Reads all of it, against its checksums."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return f"is truncated or damaged: its {size} bytes have no end of archive"
    except OSError as error:
        return f"cannot be read: {error}"
    return None if damaged is None else f"is damaged: the checksum of {damaged} is wrong"
