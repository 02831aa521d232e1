"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

KEY = "MODEL.BACKBONE.GRADIENT_CHECKPOINTING"


class CheckpointedStage(nn.Sequential):
    """Blocks of which only the inputs are kept for the backward pass; parameters named as in the original."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = run_block(block, x, enabled=True)
        return x


def run_block(block: nn.Module, *args: Any, enabled: bool) -> Any:
    """``block(*args)``, checkpointed if ``enabled`` and gradients are recorded."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)


def checkpoint_gradients(backbone: Backbone) -> None:
    """Switch gradient checkpointing on, in place: Detectron2's ResNets by block, others as they do it.

    Batch norms update their statistics once a step as without it, not again when activations are recomputed.

    Raises:
        ValueError: a backbone that cannot.
    """
    if isinstance(backbone, ResNet):
        for index, (name, stage) in enumerate(zip(backbone.stage_names, backbone.stages, strict=True)):
            backbone.stages[index] = CheckpointedStage(*stage)
            setattr(backbone, name, backbone.stages[index])
    elif hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing()
    else:
        raise ValueError(f"{KEY}: {type(backbone).__name__} has no gradient checkpointing; set it to False")
    statistics = StatisticsOnce(backbone)
    backbone.register_forward_pre_hook(statistics.resume)
    backbone.register_forward_hook(statistics.hold)


class StatisticsOnce:
    """Hooks that let batch norms update their statistics in the backbone's forward pass only.

    In between, where activations are recomputed, their momentum is 0. The counters ``num_batches_tracked``,
    which matter to cumulative averages alone, go on.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.momenta = [
            (module, module.momentum) for module in backbone.modules() if isinstance(module, _BatchNorm)
        ]

    def resume(self, backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
        for module, momentum in self.momenta:
            module.momentum = momentum

    def hold(self, backbone: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        for module, _ in self.momenta:
            module.momentum = 0.0
