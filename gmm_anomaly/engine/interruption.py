"""Ctrl-C and a cluster's SIGTERM: a training ends with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from gmm_anomaly.gmm.collectives import sum_over_ranks, world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """Ends the program with the status that shells give to a signal: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class Interruption:
    """The first signal asks for an end after the current iteration, the second one ends the program at once.

    Attributes:
        signum: the signal that came first, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take over SIGINT and SIGTERM; only in the main thread, for Python has signals nowhere else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._process = os.getpid()
        before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises :class:`Interrupted` at once: for work that changes no state."""
        self.end_if_asked()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
        # Where the exception was swallowed, in a destructor for example.
        self.end_if_asked()

    def asked_anywhere(self, device: torch.device) -> bool:
        """Whether a signal came to any rank; then it counts as this one's too. Collective."""
        if world_size() > 1:
            # SIGTERM, the larger number, is nobody's mistake.
            asked = torch.zeros(max(SIGNALS) + 1, dtype=torch.int32, device=device)
            asked[self.signum or 0] = 1
            self.signum = int(sum_over_ranks(asked).nonzero().max()) or None
        return self.signum is not None

    def end_if_asked(self) -> None:
        """Raise :class:`Interrupted` for the signal that came, if one did."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker of a loader has just been forked with this handler. Its inputs are still needed.
            return
        name = signal.Signals(signum).name
        if self.signum is not None:
            # Past every handler and hook: this is what the second Ctrl-C is for.
            _say(f"\n{name} again: ending at once, without a checkpoint\n")
            os._exit(128 + signum)
        self.signum = signum
        if self._at_once:
            self._at_once = False
            raise Interrupted(signum)
        _say(f"\n{name}: this iteration is finished and a checkpoint written; once more ends at once\n")


def _say(text: str) -> None:
    # Not by logging: the signal may have come while a line was being written.
    os.write(2, text.encode())
