"""When checkpoints are written, and which of them are kept."""

from __future__ import annotations

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpoint import FINAL, Checkpointer
from .interruption import Interruption


class CheckpointHook(HookBase):
    """Writes ``model_<iteration>.pth`` every few iterations and when the run is interrupted, and
    ``model_final.pth`` after the last one.

    Every rank has it, for they all must know of an interruption; the first one writes.

    Args:
        period: iterations from one checkpoint to the next.
        keep: the last so many stay on disk; 0: all.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, checkpointer: Checkpointer, interruption: Interruption, *, period: int, keep: int
    ) -> None:
        if period < 1:
            raise ValueError(f"SOLVER.CHECKPOINT_PERIOD: expected at least 1, found {period}")
        if keep < 0:
            raise ValueError(f"SOLVER.CHECKPOINT_KEEP: expected at least 0, found {keep}")
        self.checkpointer = checkpointer
        self.interruption = interruption
        self.period = period
        self.keep = keep
        self._saved = -1

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        asked = self.interruption.asked_anywhere(self.checkpointer.model.device)
        if asked or done == self.trainer.max_iter or done % self.period == 0:
            self.save()
        if asked:
            self.interruption.end()

    def save(self) -> None:
        """Write the state after the current iteration, unless that is done or the last one is over."""
        iteration, last = self.trainer.iter, self.trainer.max_iter - 1
        if iteration == self._saved or iteration > last or not comm.is_main_process():
            return
        name = f"model{FINAL}" if iteration == last else f"model_{iteration:07d}"
        self.checkpointer.save(name, iteration=iteration)
        self._saved = iteration
        if self.keep:
            self.checkpointer.history.keep_last(self.keep)
