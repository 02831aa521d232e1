"""One training step: forward, check, backward, optimiser."""

from __future__ import annotations

import time

import torch
from detectron2.engine import SimpleTrainer
from torch import nn


class TrainLoop(SimpleTrainer):
    """Detectron2's loop with mixed precision on any device; stops before a loss that is not finite does harm.

    Args:
        model, data_loader, optimizer: as in Detectron2's ``SimpleTrainer``.
        amp: forward passes under autocast: float16 with loss scaling on a GPU, bfloat16 on the CPU.

    Raises:
        FloatingPointError: from ``run_step``, with the iteration and every loss term, before the backward
            pass: weights and mixtures are those of the last good step.
    """

    def __init__(
        self, model: nn.Module, data_loader: object, optimizer: torch.optim.Optimizer, *, amp: bool
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        device = next(model.parameters()).device.type
        dtype = torch.float16 if device == "cuda" else torch.bfloat16
        self.autocast = torch.autocast(device, dtype=dtype, enabled=amp)
        self.scaler = torch.amp.GradScaler(device, enabled=amp and dtype == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with self.autocast:
            losses = self.model(data)
            total = sum(losses.values())
        if not torch.isfinite(total):
            terms = ", ".join(f"{name} = {value.item():g}" for name, value in losses.items())
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.iter}: {terms}. Training stopped before this "
                "step; the last checkpoint is intact. Lower SOLVER.BASE_LR, enable SOLVER.CLIP_GRADIENTS, or "
                "disable SOLVER.AMP.ENABLED"
            )
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, object]:
        state = super().state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        if self.scaler.is_enabled() and "scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["scaler"])
