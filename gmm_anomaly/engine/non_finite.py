"""NaN and infinity in a training step: what of it is not finite, found on every rank alike."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gmm_anomaly.gmm import collectives


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


def find_fault(total: Tensor, losses: Mapping[str, Tensor], watch: FeatureWatch) -> str | None:
    """What of a forward pass is not finite, on any rank, as a clause; None where all is well.

    Collective: every rank must call, with the same terms, and all find the same. One transfer to the host.

    Args:
        total: scalar, the sum of the losses. losses: named scalars. watch: that saw the pass.
    """
    names = ["the loss", *losses, *(f"the features of {part}" for part in watch.parts)]
    numbers = torch.stack([total, *losses.values()]).detach().float()
    ranks = collectives.gather_stack(torch.cat([numbers, watch.take(total.device)])).cpu()
    fault = ~ranks.isfinite().all(dim=1)
    if not bool(fault.any()):
        return None
    first = int(fault.nonzero()[0])
    wrong = [name for name, fine in zip(names, ranks[first].isfinite().tolist(), strict=True) if not fine]
    where = f" on {int(fault.sum())} of {len(fault)} ranks, first on rank {first}" if len(fault) > 1 else ""
    return f"{', '.join(wrong)}{where} ({_values(losses, ranks[first, 1:].tolist())})"


def find_gradient_fault(model: nn.Module, losses: Mapping[str, Tensor]) -> str | None:
    """As :func:`find_fault`, of the gradients after a backward pass; distributed training has made them equal
    on all ranks, so that all find the same."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not gradients:
        return None
    finite = torch.stack(torch._foreach_norm(list(gradients.values()))).isfinite().tolist()
    wrong = [name for name, fine in zip(gradients, finite, strict=True) if not fine]
    if not wrong:
        return None
    values = _values(losses, [float(term.detach()) for term in losses.values()])
    return f"the gradients of {len(wrong)} of {len(gradients)} parameters, first {wrong[0]} ({values})"


def _values(losses: Mapping[str, Tensor], values: list[float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in zip(losses, values, strict=False))
