"""One training step, and what in it is NaN or infinite, found on every rank alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from gmm_anomaly.gmm import collectives
from gmm_anomaly.gmm.gpu import to_host

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
ANEW = "or start anew without --resume (MODEL.WEIGHTS FILE takes over the weights)"


class TrainLoop(SimpleTrainer):
    """Detectron2's loop with mixed precision on any device; a step with NaN or infinity in it does no harm.

    Args:
        model, data_loader, optimizer: as in Detectron2's ``SimpleTrainer``.
        amp: type of forward passes under autocast, float16 with loss scaling; None: float32.
        non_finite: what a loss, features or gradients that are not finite lead to: "stop" raises; "skip"
            leaves the step out, as if it had not been but for the data it took, and raises after ten in a
            row.

    Attributes:
        skipped: steps left out so far, without those that the loss scaling leaves out until its scale fits.

    Raises:
        FloatingPointError: from ``run_step``, on every rank, with the iteration, what is not finite and the
            loss terms: weights and mixtures are those of the last good step.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: object,
        optimizer: torch.optim.Optimizer,
        *,
        amp: torch.dtype | None,
        non_finite: str = "stop",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.skips = non_finite == "skip"
        self.skipped = self._skipped_in_a_row = 0
        self._watch = FeatureWatch(model)
        names = {parameter: name for name, parameter in getattr(model, "module", model).named_parameters()}
        # In the optimiser's order, which groups by rate and decay.
        self._trained = [names[one] for group in optimizer.param_groups for one in group["params"]]
        self._norms = [b for name, b in model.named_buffers() if name.endswith(NORM_STATISTICS)]
        self._recorders = [module for module in model.modules() if hasattr(module, "discard_recorded")]
        device = next(model.parameters()).device.type
        self.autocast = torch.autocast(device, dtype=amp, enabled=amp is not None)
        self.scaler = torch.amp.GradScaler(device, enabled=amp == torch.float16)
        # A fused optimiser leaves a step out itself, as GradScaler tells it: nobody waits for gradients, and
        # what they were is read in the next step.
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        self._unread: tuple[int, GradientNorms] | None = None
        self._taken = True

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        norms = [buffer.clone() for buffer in self._norms] if self.skips else []
        with self.autocast:
            losses = self.model(data)
            total = sum(losses.values())
        found = PassNumbers(total, losses, self._watch, self.scaler.scale(torch.ones_like(total)))
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.after_backward()
        self.finish()
        # Read only now: a GPU is busy meanwhile.
        fault = found.fault() or self._step(found)
        self._taken = fault is None
        if self._taken:
            self._write_metrics({k: torch.tensor(v) for k, v in found.losses.items()}, data_time)
        else:
            for module in self._recorders:
                module.discard_recorded()
            for live, kept in zip(self._norms, norms, strict=False):
                live.copy_(kept)
            self._leave_out(f"not finite at iteration {self.iter}: {fault}")
        if self.skips:
            get_event_storage().put_scalar("solver/skipped_steps", self.skipped, smoothing_hint=False)

    def finish(self) -> None:
        """Account for the last step, whose gradients may not have been looked at yet."""
        unread, self._unread = self._unread, None
        if unread is not None and (fault := unread[1].fault()):
            self._leave_out(f"not finite at iteration {unread[0]}: {fault}")
        elif self._taken:
            self._skipped_in_a_row = 0

    def _step(self, found: PassNumbers) -> str | None:
        """The optimiser's step, unless gradients are not finite: then what of them is not."""
        fault = None
        # Before clipping, which a fused optimiser would do with scaled ones.
        self.scaler.unscale_(self.optimizer)
        if not self.scaler.is_enabled() or found.scale < LEAST_LOSS_SCALE:
            norms = GradientNorms(self.model, found.losses)
            if self._fused and not self.scaler.is_enabled():
                self.optimizer.found_inf = (~norms.finite).float()  # type: ignore[attr-defined]
                self._unread = self.iter, norms
            else:
                fault = norms.fault()
        if fault is None:
            # Leaves a step out itself whose gradients overflowed at the present scale, which then falls.
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return fault

    def _leave_out(self, what: str) -> None:
        if not self.skips:
            raise FloatingPointError(f"{what}. Training stopped before this step; {CURE}")
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= NON_FINITE_LIMIT:
            raise FloatingPointError(
                f"{what}. Training stopped: {self._skipped_in_a_row} steps in a row were left out; {CURE}"
            )
        logger.warning("Step left out (%d so far): %s", self.skipped, what)

    def state_dict(self) -> dict[str, Any]:
        own = {"skipped": self.skipped, "scaler": self.scaler.state_dict(), "trained": self._trained}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's state; the keys of the config (rates, decay, momentum) stay.

        Raises:
            ValueError: it is of another optimiser, or of other parameters.
        """
        stored, found = (
            "ADAMW" if "betas" in groups[0] else "SGD"
            for groups in (state_dict["optimizer"]["param_groups"], self.optimizer.param_groups)
        )
        if stored != found:
            raise ValueError(
                f"--resume: the checkpoint has SOLVER.OPTIMIZER {stored}, the config {found}; {ANEW}"
            )
        # Checkpoints of other trainers of Detectron2 do not say.
        trained = state_dict.get("trained", self._trained)
        others = sorted({*trained} ^ {*self._trained})
        if others:
            raise ValueError(
                f"--resume: the config trains other parameters than the checkpoint: {len(others)} differ, "
                f"first {others[0]}; leave MODEL as it was (CLASSIFIER.NAME, BACKBONE.FREEZE_AT, ...), {ANEW}"
            )
        moments = state_dict["optimizer"]["state"]
        places = {name: place for place, name in enumerate(trained)}
        own = self.optimizer.state_dict()
        own["state"] = {
            place: moments[places[name]]
            for place, name in enumerate(self._trained)
            if places[name] in moments
        }
        super().load_state_dict(state_dict | {"optimizer": own})
        self.skipped = state_dict.get("skipped", 0)
        if self.scaler.is_enabled() and state_dict.get("scaler"):
            self.scaler.load_state_dict(state_dict["scaler"])


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Type of mixed precision that ``SOLVER.AMP`` asks for; None without it."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    by_device = "bfloat16" if cfg.MODEL.DEVICE == "cpu" else "float16"
    return getattr(torch, by_device if cfg.SOLVER.AMP.DTYPE == "auto" else cfg.SOLVER.AMP.DTYPE)


class FeatureWatch:
    """Sums up, during forward passes with gradients, what a segmentor's parts give: a sum keeps NaN and
    infinity, and is many times faster than a test of each number. Never waits for a GPU.

    Args:
        model: a segmentor, wrapped for distributed training or not. Parts that it lacks are not watched.

    Attributes:
        parts: names of those that are, "backbone", "decoder" and "embedding" at most.
    """

    def __init__(self, model: nn.Module) -> None:
        segmentor = getattr(model, "module", model)
        found = {
            "backbone": getattr(segmentor, "backbone", None),
            "decoder": getattr(segmentor, "decoder", None),
            "embedding": getattr(getattr(segmentor, "classifier", None), "feature_norm", None),
        }
        self.parts = [name for name, part in found.items() if isinstance(part, nn.Module)]
        self._sums: dict[str, Tensor] = {}
        for name in self.parts:
            found[name].register_forward_hook(partial(self._note, name))

    def _note(self, part: str, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
        """outputs: features by name (of a backbone), with an attribute ``features`` (a decoder), or one
        tensor."""
        if torch.is_grad_enabled():
            by_name = outputs if isinstance(outputs, Mapping) else {"": getattr(outputs, "features", outputs)}
            total = sum(tensor.detach().sum(dtype=torch.float32) for tensor in by_name.values())
            self._sums[part] = self._sums.get(part, 0) + total

    def take(self, device: torch.device) -> Tensor:
        """(number of parts,) float32, the sums since the last call."""
        sums = [self._sums.get(part, torch.zeros((), device=device)) for part in self.parts]
        self._sums.clear()
        return torch.stack(sums) if sums else torch.zeros(0, device=device)


class PassNumbers:
    """Losses and sums of features of a forward pass, of every rank, on their way to the host.

    Collective: every rank must make one, with the same terms, and all find the same. One transfer.

    Args:
        total: scalar, the sum of the losses. losses: named scalars. watch: that saw the pass.
        scale: scalar, of the losses.
    """

    def __init__(
        self, total: Tensor, losses: Mapping[str, Tensor], watch: FeatureWatch, scale: Tensor
    ) -> None:
        self._names = ["the loss", *losses, *(f"the features of {part}" for part in watch.parts)]
        self._terms = list(losses)
        numbers = torch.stack([scale, total, *losses.values()]).detach().float()
        self._read = to_host(collectives.gather_stack(torch.cat([numbers, watch.take(total.device)])))

    @property
    def scale(self) -> float:
        return float(self._read()[0, 0])

    @property
    def losses(self) -> dict[str, float]:
        """Of this rank."""
        return self._losses_of(collectives.rank())

    def _losses_of(self, rank: int) -> dict[str, float]:
        return dict(zip(self._terms, self._read()[rank, 2:].tolist(), strict=False))

    def fault(self) -> str | None:
        """What is not finite, on any rank, as a clause; None where all is well."""
        ranks = self._read()[:, 1:]
        bad = ~ranks.isfinite().all(dim=1)
        if not bool(bad.any()):
            return None
        first = int(bad.nonzero()[0])
        fine = ranks[first].isfinite().tolist()
        wrong = [name for name, finite in zip(self._names, fine, strict=True) if not finite]
        where = f" on {int(bad.sum())} of {len(bad)} ranks, first on rank {first}" if len(bad) > 1 else ""
        return f"{', '.join(wrong)}{where} ({_values(self._losses_of(first))})"


class GradientNorms:
    """Norms of the gradients after a backward pass, on their way to the host. Distributed training has made
    them equal on all ranks, so that all find the same.

    Attributes:
        finite: () bool, whether all of them are, where the gradients are.
    """

    def __init__(self, model: nn.Module, losses: Mapping[str, float]) -> None:
        self._losses = losses
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self._names = list(gradients)
        norms = torch._foreach_norm(list(gradients.values())) if gradients else [torch.zeros(())]
        self.finite = (each := torch.stack(norms).isfinite()).all()
        self._read = to_host(each)

    def fault(self) -> str | None:
        """What is not finite, as a clause; None where all is well."""
        fine = self._read().tolist()
        wrong = [name for name, finite in zip(self._names, fine, strict=False) if not finite]
        if not wrong:
            return None
        names = f"the gradients of {len(wrong)} of {len(self._names)} parameters, first {wrong[0]}"
        return f"{names} ({_values(self._losses)})"


def _values(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in losses.items())
