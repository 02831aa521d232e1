"""One training step: forward, check, backward, optimiser."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn

from .non_finite import RULES, FeatureWatch, NormStatistics, StepFault, find_fault, find_gradient_fault

logger = logging.getLogger(__name__)

# Loss scaling falls this far only if gradients overflow whatever the scale.
LEAST_LOSS_SCALE = 1.0
CURE = (
    "the last checkpoint is intact. Lower SOLVER.BASE_LR, enable SOLVER.CLIP_GRADIENTS, disable "
    "SOLVER.AMP.ENABLED, or leave such steps out with SOLVER.NON_FINITE skip"
)


class TrainLoop(SimpleTrainer):
    """Detectron2's loop with mixed precision on any device; a step with NaN or infinity in it does no harm.

    A step that the loss scaling leaves out, because gradients overflowed in half precision, records nothing
    for EM either. It is no fault: the scale falls until they fit.

    Args:
        model, data_loader, optimizer: as in Detectron2's ``SimpleTrainer``.
        amp: forward passes under autocast: float16 with loss scaling on a GPU, bfloat16 on the CPU.
        non_finite: what a loss, features or gradients that are not finite lead to: "stop" raises, "skip"
            leaves the step out, as if it had not been but for the data it took.
        non_finite_limit: so many steps left out in a row raise all the same.

    Attributes:
        skipped: steps left out so far. overflowed: those that the loss scaling left out.

    Raises:
        ValueError: a rule or limit out of range.
        FloatingPointError: from ``run_step``, on every rank, with the iteration, the loss terms and what
            else is known of the cause: weights and mixtures are those of the last good step.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: object,
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool,
        non_finite: str = "stop",
        non_finite_limit: int = 10,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if non_finite not in RULES:
            raise ValueError(f"SOLVER.NON_FINITE: expected one of {', '.join(RULES)}, found {non_finite!r}")
        if non_finite_limit < 1:
            raise ValueError(f"SOLVER.NON_FINITE_LIMIT: expected at least 1, found {non_finite_limit}")
        self.non_finite_limit = non_finite_limit
        self.skipped = self.overflowed = self._skipped_in_a_row = 0
        self._watch = FeatureWatch(model)
        self._norms = NormStatistics(model) if non_finite == "skip" else None
        self._recorders = [module for module in model.modules() if hasattr(module, "discard_recorded")]
        device = next(model.parameters()).device.type
        dtype = torch.float16 if device == "cuda" else torch.bfloat16
        self.autocast = torch.autocast(device, dtype=dtype, enabled=amp)
        self.scaler = torch.amp.GradScaler(device, enabled=amp and dtype == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self._norms is not None:
            self._norms.keep()
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
            self._leave_out(fault)
        self._count()

    def _step(self, losses: Mapping[str, torch.Tensor]) -> StepFault | None:
        """The optimiser's step, unless gradients are not finite."""
        fault = None
        if not self.scaler.is_enabled():
            fault = find_gradient_fault(self.model, losses)
            if fault is None:
                self.optimizer.step()
            return fault
        scale = self.scaler.get_scale()
        if scale < LEAST_LOSS_SCALE:
            # Not the scale, but the gradients themselves are beyond half precision.
            self.scaler.unscale_(self.optimizer)
            fault = find_gradient_fault(self.model, losses)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            self._discard_recorded()
            self.overflowed += 1
        return fault

    def _leave_out(self, fault: StepFault) -> None:
        what = fault.describe(self.iter)
        self._discard_recorded()
        if self._norms is None:
            raise FloatingPointError(f"{what}. Training stopped before this step; {CURE}")
        self._norms.restore()
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.non_finite_limit:
            raise FloatingPointError(
                f"{what}. Training stopped: {self._skipped_in_a_row} steps in a row were left out "
                f"(SOLVER.NON_FINITE_LIMIT); {CURE}"
            )
        logger.warning("Step left out (%d so far): %s", self.skipped, what)

    def _discard_recorded(self) -> None:
        for module in self._recorders:
            module.discard_recorded()

    def _count(self) -> None:
        storage = get_event_storage()
        if self._norms is not None:
            storage.put_scalar("solver/skipped_steps", self.skipped, smoothing_hint=False)
        if self.scaler.is_enabled():
            storage.put_scalar("solver/overflowed_steps", self.overflowed, smoothing_hint=False)

    def state_dict(self) -> dict[str, object]:
        state = super().state_dict()
        state["left_out"] = {"skipped": self.skipped, "overflowed": self.overflowed}
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        left_out = state_dict.get("left_out", {})
        self.skipped, self.overflowed = left_out.get("skipped", 0), left_out.get("overflowed", 0)
        if self.scaler.is_enabled() and "scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["scaler"])
