"""One training step: forward, check, backward, optimiser."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn

from .non_finite import FeatureWatch, find_fault, find_gradient_fault

logger = logging.getLogger(__name__)

# So many steps left out in a row end a training.
NON_FINITE_LIMIT = 10
# Loss scaling falls this far only if gradients overflow whatever the scale.
LEAST_LOSS_SCALE = 1.0
NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
CURE = (
    "the last checkpoint is intact. Lower SOLVER.BASE_LR, enable SOLVER.CLIP_GRADIENTS, disable "
    "SOLVER.AMP.ENABLED, or leave such steps out with SOLVER.NON_FINITE skip"
)


class TrainLoop(SimpleTrainer):
    """Detectron2's loop with mixed precision on any device; a step with NaN or infinity in it does no harm.

    Args:
        model, data_loader, optimizer: as in Detectron2's ``SimpleTrainer``.
        amp: forward passes under autocast: float16 with loss scaling on a GPU, bfloat16 on the CPU.
        non_finite: what a loss, features or gradients that are not finite lead to: "stop" raises; "skip"
            leaves the step out, as if it had not been but for the data it took, and raises after ten in a
            row.

    Attributes:
        skipped: steps left out so far, without those that the loss scaling leaves out until its scale fits.

    Raises:
        ValueError: an unknown rule.
        FloatingPointError: from ``run_step``, on every rank, with the iteration, what is not finite and the
            loss terms: weights and mixtures are those of the last good step.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: object,
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool,
        non_finite: str = "stop",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if non_finite not in ("stop", "skip"):
            raise ValueError(f'SOLVER.NON_FINITE: expected "stop" or "skip", found {non_finite!r}')
        self.skips = non_finite == "skip"
        self.skipped = self._skipped_in_a_row = 0
        self._watch = FeatureWatch(model)
        self._norms = [b for name, b in model.named_buffers() if name.endswith(NORM_STATISTICS)]
        self._recorders = [module for module in model.modules() if hasattr(module, "discard_recorded")]
        device = next(model.parameters()).device.type
        dtype = torch.float16 if device == "cuda" else torch.bfloat16
        self.autocast = torch.autocast(device, dtype=dtype, enabled=amp)
        self.scaler = torch.amp.GradScaler(device, enabled=amp and dtype == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        norms = [buffer.clone() for buffer in self._norms] if self.skips else []
        with self.autocast:
            losses = self.model(data)
            total = sum(losses.values())
        fault = find_fault(total, losses, self._watch)
        if fault is None:
            self.optimizer.zero_grad()
            self.scaler.scale(total).backward()
            self.after_backward()
            fault = self._step(losses)
        if fault is None:
            self._skipped_in_a_row = 0
            self._write_metrics(losses, data_time)
        else:
            self._leave_out(f"not finite at iteration {self.iter}: {fault}", norms)
        if self.skips:
            get_event_storage().put_scalar("solver/skipped_steps", self.skipped, smoothing_hint=False)

    def _step(self, losses: Mapping[str, torch.Tensor]) -> str | None:
        """The optimiser's step, unless gradients are not finite: then what of them is not."""
        fault = None
        if not self.scaler.is_enabled() or self.scaler.get_scale() < LEAST_LOSS_SCALE:
            self.scaler.unscale_(self.optimizer)
            fault = find_gradient_fault(self.model, losses)
        if fault is None:
            # Leaves a step out itself whose gradients overflowed at the present scale, which then falls.
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return fault

    def _leave_out(self, what: str, norms: list[torch.Tensor]) -> None:
        for module in self._recorders:
            module.discard_recorded()
        if not self.skips:
            raise FloatingPointError(f"{what}. Training stopped before this step; {CURE}")
        for live, kept in zip(self._norms, norms, strict=True):
            live.copy_(kept)
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= NON_FINITE_LIMIT:
            raise FloatingPointError(
                f"{what}. Training stopped: {self._skipped_in_a_row} steps in a row were left out; {CURE}"
            )
        logger.warning("Step left out (%d so far): %s", self.skipped, what)

    def state_dict(self) -> dict[str, object]:
        return super().state_dict() | {"skipped": self.skipped, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self.skipped = state_dict["skipped"]
        if self.scaler.is_enabled() and state_dict["scaler"]:
            self.scaler.load_state_dict(state_dict["scaler"])
