"""What timm's HRNets need: their parallel branches are no sequence of stages that timm's own means know."""

from __future__ import annotations

from timm.models.hrnet import HighResolutionNetFeatures, SequentialList
from torch import Tensor, nn

from .checkpointing import CheckpointedStage, run_block


class CheckpointedBranches(SequentialList):
    """Modules of a stage, of which only the branches' inputs are kept for the backward pass."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        for module in self:
            # A list of its own: the module writes into it, and reads it again when it is recomputed.
            x = run_block(lambda *branches, module=module: module(list(branches)), *x, enabled=True)
        return x


def checkpoint_hrnet(model: HighResolutionNetFeatures) -> None:
    """Gradient checkpointing by residual block in the first stage, by module in the others, in place."""
    model.layer1.__class__ = CheckpointedStage
    for stage in (model.stage2, model.stage3, model.stage4):
        stage.__class__ = CheckpointedBranches


def hrnet_stage_parts(model: HighResolutionNetFeatures) -> list[list[nn.Module | nn.Parameter]]:
    """Modules of the stem and of the four stages, in order."""
    return [
        [model.conv1, model.bn1, model.conv2, model.bn2],
        [model.layer1],
        [model.transition1, model.stage2],
        [model.transition2, model.stage3],
        [model],
    ]
