"""OUTPUT_DIR: one run at a time, and one that starts anew does not go on with the curves of another."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import platform
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from gmm_anomaly.data.atomic import replacing

from .checkpoint import HISTORY, TAG
from .loggers import RUN_FILE

logger = logging.getLogger(__name__)

CONFIG, LOCK = "config.yaml", ".lock"
# What an earlier run has said about itself; its checkpoints stay where they are.
SAID = (
    "metrics.json", "events.out.tfevents.*", "results.json", "curves", "visualizations", "model_best.json",
    RUN_FILE, TAG, HISTORY,
)  # fmt: skip


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other programs out of a folder, those that use this function; made if need be.

    The kernel holds the lock and lets go of it when the process ends, however that ends. Does nothing but on
    rank 0.

    Raises:
        ValueError: another run is in there.
    """
    if not comm.is_main_process():
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    # A record lock: workers of a loader, which may outlive a process that is killed, do not inherit it.
    with (Path(folder) / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read() or "which has just started"
            raise ValueError(
                f"OUTPUT_DIR: another run, {holder}, is writing into {folder}; add OUTPUT_DIR with another "
                "folder to the command, or wait until it has ended"
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second run in it", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def set_up(cfg: CfgNode, args: Namespace) -> None:
    """Detectron2's ``default_setup``, but the config.yaml of a training stays as it was: an evaluation, or a
    run that is refused later on, is not what made the checkpoints. :func:`write_config` replaces it."""
    path = Path(cfg.OUTPUT_DIR) / CONFIG
    kept = path.read_text() if path.is_file() and (path.parent / TAG).is_file() else None
    default_setup(cfg, args)
    if kept is not None and comm.is_main_process():
        with replacing(path) as temporary:
            temporary.write_text(kept)


def write_config(cfg: CfgNode) -> None:
    """Write ``OUTPUT_DIR/config.yaml``; on rank 0."""
    if comm.is_main_process():
        with replacing(Path(cfg.OUTPUT_DIR) / CONFIG) as temporary:
            temporary.write_text(cfg.dump())


def set_aside(folder: Path) -> None:
    """Move what an earlier run has said into ``folder``/earlier_1, or the next number that is free."""
    found = [path for pattern in SAID for path in folder.glob(pattern)]
    if found:
        aside = next(path for n in itertools.count(1) if not (path := folder / f"earlier_{n}").exists())
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
        logger.warning("Starting anew; curves and results of an earlier run are in %s now", aside)


class MetricsWriter(hooks.PeriodicWriter):
    """Detectron2's hook that writes metrics; a training that begins at iteration 0 sets earlier ones aside.

    Args:
        folder: ``OUTPUT_DIR``. build: makes the writers, when the training begins. period: iterations from
            one line to the next.
    """

    def __init__(
        self, folder: str | os.PathLike[str], build: Callable[[], Sequence[EventWriter]], period: int = 20
    ) -> None:
        super().__init__([], period)
        self.folder, self.build = Path(folder), build

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            set_aside(self.folder)
        self._writers = self.build()
