"""Freezing backbones, by stages or as a whole: no gradients, and no change of norm statistics."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from torch import nn


class FreezableBackbone(Backbone):
    """A backbone whose frozen parts stay in evaluation mode: their norm statistics and stochastic depth too.

    ``MODEL.BACKBONE.FREEZE_AT`` counts as in Detectron2: 1 is the stem, 2 the stem and the first stage, 5
    everything that is pretrained. What this project adds to a pretrained network, the norms of its outputs or
    a pyramid, stays trainable. Subclasses say what their stages are.
    """

    _frozen: Sequence[nn.Module] = ()

    def stage_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        """Modules and parameters of the stem and of each stage, in order."""
        raise NotImplementedError

    def freeze(self, freeze_at: int) -> None:
        """Freeze the stem and the first ``freeze_at - 1`` stages; 0 freezes nothing.

        Raises:
            ValueError: a negative number, or more than there are.
        """
        if freeze_at == 0:
            return
        stages = self.stage_parts()
        if not 0 < freeze_at <= len(stages):
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT: expected 0 (nothing) to {len(stages)} (stem and "
                f"{len(stages) - 1} stages), found {freeze_at}"
            )
        parts = [part for stage in stages[:freeze_at] for part in stage]
        for part in parts:
            part.requires_grad_(False)
        self._frozen = [part for part in parts if isinstance(part, nn.Module)]
        self.train(self.training)

    def freeze_all(self) -> None:
        """Freeze everything, what the project added included."""
        self.requires_grad_(False)
        self._frozen = list(self.children())
        self.train(self.training)

    def train(self, mode: bool = True) -> FreezableBackbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def freeze_backbone(backbone: Backbone) -> None:
    """Freeze a whole backbone, in place. Detectron2's own get frozen batch norms, as with its FREEZE_AT."""
    if isinstance(backbone, FreezableBackbone):
        backbone.freeze_all()
    else:
        backbone.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)
