"""A data loader whose workers survive Ctrl-C, and whose errors say what became of a worker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

# Seconds that a worker goes on after SIGTERM, for the process that it works for to finish its step.
GRACE = 30


class InputLoader(DataLoader[Any]):
    """torch's loader with workers of its own kind; its iterators draw nothing from the global generators.

    Raises:
        RuntimeError: while iterating, a worker was killed or ended: says what usually does that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # torch draws a seed for the workers from it, though every input has one of its own here.
        generator = torch.Generator().manual_seed(0)
        super().__init__(*args, worker_init_fn=_keep_working, generator=generator, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        with lost_workers_explained():
            try:
                yield from super().__iter__()
            except (ConnectionError, EOFError) as error:
                # It died while it handed a tensor over, before torch noticed.
                raise RuntimeError(f"DataLoader worker is gone ({type(error).__name__})") from error


def _keep_working(_worker: int) -> None:
    """A terminal sends Ctrl-C, and a cluster SIGTERM, to workers too, while their inputs are still needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


@contextmanager
def lost_workers_explained() -> Iterator[None]:
    """Turn torch's error about a worker that died, raised anywhere inside, into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader worker") or "SOLVER.IMS_PER_BATCH" in text:
            raise
        raise RuntimeError(
            f"{text.strip().rstrip('.')}. It was ended from outside: an input that makes it fail would be "
            "named here. Most often the system ran out of memory (see dmesg): lower DATALOADER.NUM_WORKERS "
            "or SOLVER.IMS_PER_BATCH, or set INPUT.CACHE_DECODED False; in a container give it more shared "
            "memory (docker run --shm-size). Checkpoints are intact, continue with --resume"
        ) from error
