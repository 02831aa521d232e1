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
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from gmm_anomaly.data.atomic import replacing

from .belonging import with_weights
from .checkpoint import HISTORY, TAG, Checkpointer
from .config import read_config
from .loggers import RUN_FILE

logger = logging.getLogger(__name__)

CONFIG, LOCK = "config.yaml", ".lock"
# What an earlier run has said about itself; its checkpoints stay where they are.
SAID = (
    "metrics.json", "events.out.tfevents.*", "results.json", "curves", "visualizations", "model_best.json",
    RUN_FILE, TAG, HISTORY,
)  # fmt: skip


@contextmanager
def held_log(name: str) -> Iterator[None]:
    """Hold back what is logged under ``name`` inside, and pass it on at the end: a config is read before its
    ``OUTPUT_DIR`` is known, and its lines belong into the log in there."""
    logger = logging.getLogger(name)
    holder = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logger.addHandler(holder)
    try:
        yield
    finally:
        logger.removeHandler(holder)
        for record_ in holder.buffer:
            logger.handle(record_)


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


def with_run_weights(cfg: CfgNode, config_file: str, overrides: Sequence[Any]) -> CfgNode:
    """The config of a command that makes use of a trained model: what a run started from never stands in for
    what it made.

    Args:
        cfg: of ``config_file``. overrides: ``KEY VALUE`` pairs of the command.

    Returns:
        A config with ``MODEL.WEIGHTS`` as it is, if that is among the overrides or in the folder of the
        config; for a run's config.yaml otherwise that run's last checkpoint that is whole.

    Raises:
        ValueError: the run in ``OUTPUT_DIR`` started from these weights, so that they may not be meant.
    """
    if "MODEL.WEIGHTS" in overrides[::2]:
        return cfg
    folder, file, output = Path(config_file).parent, Path(cfg.MODEL.WEIGHTS), Path(cfg.OUTPUT_DIR)
    if Path(config_file).name == CONFIG and (folder / TAG).is_file():
        if file.is_file() and file.resolve().parent == folder.resolve():
            return cfg
        last = Checkpointer(nn.Identity(), str(folder)).get_checkpoint_file()
        if cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS %s is what a run started from; its last checkpoint is used", file)
        return with_weights(cfg, last)
    if cfg.MODEL.WEIGHTS and (output / TAG).is_file() and (output / CONFIG).is_file():
        if read_config(str(output / CONFIG)).MODEL.WEIGHTS == cfg.MODEL.WEIGHTS:
            raise ValueError(
                f"MODEL.WEIGHTS: the run in {output} (OUTPUT_DIR) started from {file}; add the weights that "
                f"are meant to the command: MODEL.WEIGHTS {output / (output / TAG).read_text().strip()}, or "
                f"MODEL.WEIGHTS {file}"
            )
    return cfg


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
