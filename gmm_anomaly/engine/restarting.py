"""Whether torchrun has restarted this run's processes, and they shall go on from its last checkpoint."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from gmm_anomaly.data.atomic import replacing

from .launching import TorchrunWorker

logger = logging.getLogger(__name__)

FILE = "torchrun_job.json"


def resumes_after_restart(output_dir: str) -> bool:
    """Whether a checkpoint in ``output_dir`` is of an earlier round of this very torchrun command.

    torchrun's restart count does not say that: it stays 0 when machines join, differs between machines, and
    the folder may hold the checkpoint of another run, that the first round did not want to resume. So the
    first round writes down in ``torchrun_job.json`` who started it and which checkpoint it found.

    Collective: every rank must call, before the first checkpoint is written. False outside torchrun.
    """
    if TorchrunWorker.from_environment() is None:
        return False
    agents = sorted(set(comm.all_gather(_agent())))
    resumes = _compare_with_first_round(Path(output_dir), agents) if comm.is_main_process() else None
    return bool(comm.all_gather(resumes)[0])


def _agent() -> str:
    """The torchrun process that started this one; it lives as long as the command."""
    # It makes a folder of a random name, and in it one for each round and process.
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    known = str(Path(error_file).parents[2]) if error_file else str(os.getppid())
    return f"{socket.gethostname()}:{known}"


def _compare_with_first_round(folder: Path, agents: list[str]) -> bool:
    file, tag = folder / FILE, folder / "last_checkpoint"
    checkpoint = tag.stat().st_mtime_ns if tag.is_file() else None
    first: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"agents": []}
    is_restart = not set(agents).isdisjoint(first["agents"])
    if is_restart:
        agents = sorted({*agents, *first["agents"]})
        found_first = first["checkpoint"]
    else:
        found_first = checkpoint
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"agents": agents, "checkpoint": found_first}))
    if not is_restart:
        return False
    if checkpoint == found_first:
        logger.warning("torchrun has restarted the processes, before this run's first checkpoint")
        return False
    logger.warning("torchrun has restarted the processes: resuming from %s", tag.read_text().strip())
    return True
