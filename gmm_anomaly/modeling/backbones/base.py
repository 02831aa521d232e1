"""What backbones have in common: freezing by stages, and activations that are recomputed instead of kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Part = nn.Module | nn.Parameter


class FreezableBackbone(Backbone):
    """A backbone whose frozen parts stay in evaluation mode: their norm statistics and stochastic depth too.

    ``MODEL.BACKBONE.FREEZE_AT`` counts as in Detectron2: 1 is the stem, 2 the stem and the first stage, 5
    everything that is pretrained. What this project adds to a pretrained network, the norms of its outputs or
    a pyramid, stays trainable.
    """

    # Where the pretrained network is in it, as ``get_submodule`` names it; "": it is the network.
    network = ""
    _frozen: Sequence[nn.Module] = ()

    def frozen_parts(self, freeze_at: int) -> list[Part]:
        """Modules and parameters of the stem and the first ``freeze_at - 1`` stages; freeze_at: 1 to 5."""
        raise NotImplementedError

    def freeze(self, freeze_at: int) -> None:
        """Freeze the stem and the first ``freeze_at - 1`` stages; 0 freezes nothing."""
        self._frozen = []
        for part in self.frozen_parts(freeze_at) if freeze_at else ():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                self._frozen.append(part)
        self.train(self.training)

    def train(self, mode: bool = True) -> FreezableBackbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def set_grad_checkpointing(self) -> None:
        """Keep only the inputs of blocks, or of stages, for the backward pass."""
        raise NotImplementedError

    def level_layers(self) -> dict[str, nn.Module]:
        """Layers that serve one of the output's levels alone, by its name."""
        return {}

    def drop(self, level: str) -> None:
        """Give this level of :meth:`level_layers` no more, and have no layers for it."""
        raise NotImplementedError

    def keep(self, trained: Collection[str], measured: Collection[str] = ()) -> None:
        """Drop the levels that nobody reads, as parameters without a gradient break data parallelism.

        Args:
            trained: levels that a loss reads. measured: others to give as well; their own layers are frozen.
        """
        for level, layers in self.level_layers().items():
            if level in measured and level not in trained:
                layers.requires_grad_(False)
            elif level not in trained:
                self.drop(level)


def keep_levels(
    backbone: Backbone, trained: Collection[str], measured: Collection[str], channels: int
) -> None:
    """Freeze what no loss reaches, as behind the last level in use, and drop levels that nobody reads, in
    place: parameters without a gradient break data parallelism.

    Args:
        trained, measured: see :meth:`FreezableBackbone.keep`. channels: of the image.
    """
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if parameters and list(backbone.output_shape())[-1] not in trained:
        mode = backbone.training
        # In evaluation no statistics change.
        features = backbone.eval()(torch.zeros(1, channels, 64, 64))
        backbone.train(mode)
        total = sum(features[name].sum() for name in trained)
        reached = torch.autograd.grad(total, parameters, allow_unused=True) if total.requires_grad else ()
        for parameter, gradient in zip_longest(parameters, reached):
            parameter.requires_grad_(gradient is not None)
    if isinstance(backbone, FreezableBackbone):
        backbone.keep(trained, measured)


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
    (The counters ``num_batches_tracked``, which matter to cumulative averages alone, go on.)

    Raises:
        ValueError: a backbone that cannot.
    """
    if isinstance(backbone, ResNet):
        for index, (name, stage) in enumerate(zip(backbone.stage_names, backbone.stages, strict=True)):
            backbone.stages[index] = CheckpointedStage(*stage)
            setattr(backbone, name, backbone.stages[index])
    elif isinstance(backbone, FreezableBackbone):
        backbone.set_grad_checkpointing()
    else:
        raise ValueError(
            f"MODEL.BACKBONE.GRADIENT_CHECKPOINTING: {type(backbone).__name__} has no gradient "
            "checkpointing; set it to False"
        )
    backbone.register_forward_pre_hook(_update_statistics)
    backbone.register_forward_hook(_hold_statistics)


def _update_statistics(backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
    for norm in _batch_norms(backbone):
        norm.momentum = norm.__dict__.pop("momentum_in_forward", norm.momentum)


def _hold_statistics(backbone: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
    for norm in _batch_norms(backbone):
        norm.momentum_in_forward, norm.momentum = norm.momentum, 0.0


def _batch_norms(backbone: nn.Module) -> Iterator[nn.Module]:
    return (module for module in backbone.modules() if isinstance(module, _BatchNorm))
