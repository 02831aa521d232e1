"""NaN and infinity in a training step: where they are, on every rank alike, and how the step is undone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmm_anomaly.gmm import collectives

RULES = ("stop", "skip")
NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class StepFault(NamedTuple):
    """What of a step is not finite.

    Attributes:
        where: "loss", "features" or "gradients".
        terms: the loss terms of the first rank at fault.
        cause: what else is known, as a clause that follows them.
    """

    where: str
    terms: Mapping[str, float]
    cause: str

    def describe(self, iteration: int) -> str:
        terms = ", ".join(f"{name} = {value:g}" for name, value in self.terms.items())
        verb = "is" if self.where == "loss" else "are"
        return f"the {self.where} {verb} not finite at iteration {iteration}: {terms} ({self.cause})"


class FeatureWatch:
    """Notes, during forward passes with gradients, whether what a segmentor's parts give is finite (and adds
    up to a number that float32 can hold); never waits for a GPU.

    Args:
        model: a segmentor, wrapped for distributed training or not. Parts that it lacks are not watched.
    """

    def __init__(self, model: nn.Module) -> None:
        segmentor = getattr(model, "module", model)
        classifier = getattr(segmentor, "classifier", None)
        parts = {
            "backbone": getattr(segmentor, "backbone", None),
            "decoder": getattr(segmentor, "decoder", None),
            "embedding": getattr(classifier, "feature_norm", None),
        }
        self.parts = [name for name, part in parts.items() if isinstance(part, nn.Module)]
        self._wrong: dict[str, Tensor] = {}
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                part.register_forward_hook(partial(self._note, name))

    def _note(self, part: str, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        # A sum keeps NaN and infinity, and is many times faster than a test of each number.
        sums = [tensor.detach().sum(dtype=torch.float32) for tensor in _feature_tensors(outputs)]
        wrong = ~torch.stack(sums).isfinite().all()
        self._wrong[part] = self._wrong[part] | wrong if part in self._wrong else wrong

    def take(self, device: torch.device) -> Tensor:
        """(number of parts,) float32: 1 where features were not finite since the last call, else 0."""
        fine = torch.zeros((), dtype=torch.bool, device=device)
        flags = [self._wrong.get(part, fine) for part in self.parts]
        self._wrong.clear()
        return torch.stack(flags).float() if flags else torch.zeros(0, device=device)


def _feature_tensors(outputs: Any) -> list[Tensor]:
    """Features of a backbone (by name), a decoder (``Decoded``) or a layer (a tensor)."""
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return [getattr(outputs, "features", outputs)]


def find_fault(total: Tensor, losses: Mapping[str, Tensor], watch: FeatureWatch) -> StepFault | None:
    """What of a forward pass is not finite, on any rank; None where all is well.

    Collective: every rank must call, with the same terms, and all find the same. One transfer to the host.

    Args:
        total: scalar, the sum of the losses. losses: named scalars. watch: that saw the pass.
    """
    flags = watch.take(total.device)
    numbers = torch.stack([total, *losses.values()]).detach().float()
    ranks = collectives.gather_stack(torch.cat([numbers, flags])).cpu()
    finite = ranks[:, : len(numbers)].isfinite().all(dim=1)
    fault = ~finite | (ranks[:, len(numbers) :] > 0).any(dim=1)
    if not bool(fault.any()):
        return None
    first = int(fault.nonzero()[0])
    values = ranks[first].tolist()
    terms = dict(zip(losses, values[1 : len(numbers)], strict=True))
    wrong = [part for part, flag in zip(watch.parts, values[len(numbers) :], strict=True) if flag]
    where = "features" if bool(finite[first]) else "loss"
    return StepFault(where, terms, _cause(terms, wrong, watch.parts) + _on_ranks(fault))


def _cause(terms: Mapping[str, float], wrong: list[str], parts: list[str]) -> str:
    named = [name for name, value in terms.items() if not math.isfinite(value)]
    clauses = [f"not finite: {', '.join(named)}" if named else "each term is finite"]
    if wrong:
        clauses.append(f"already not finite: the features of {', '.join(wrong)}")
    fine = [part for part in parts if part not in wrong]
    if fine:
        clauses.append(f"finite: the features of {', '.join(fine)}")
    return "; ".join(clauses)


def _on_ranks(fault: Tensor) -> str:
    if len(fault) == 1:
        return ""
    return f"; on {int(fault.sum())} of {len(fault)} ranks, first on rank {int(fault.nonzero()[0])}"


def find_gradient_fault(model: nn.Module, losses: Mapping[str, Tensor]) -> StepFault | None:
    """Gradients that are not finite after a backward pass; distributed training has made them equal on all
    ranks, so that all find the same."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not gradients:
        return None
    norms = torch.stack(torch._foreach_norm(list(gradients.values())))
    wrong = (~norms.isfinite()).nonzero()[:, 0].tolist()
    if not wrong:
        return None
    first = list(gradients)[wrong[0]]
    cause = f"the loss is; not finite: those of {len(wrong)} of {len(gradients)} parameters, first {first}"
    return StepFault("gradients", {name: float(term.detach()) for name, term in losses.items()}, cause)


class NormStatistics:
    """The running statistics of a model's norms, kept so that a step can be undone."""

    def __init__(self, model: nn.Module) -> None:
        self._live = [
            buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in NORM_STATISTICS
        ]
        self._kept = [buffer.clone() for buffer in self._live]

    @torch.no_grad()
    def keep(self) -> None:
        for kept, live in zip(self._kept, self._live, strict=True):
            kept.copy_(live)

    @torch.no_grad()
    def restore(self) -> None:
        for kept, live in zip(self._kept, self._live, strict=True):
            live.copy_(kept)
