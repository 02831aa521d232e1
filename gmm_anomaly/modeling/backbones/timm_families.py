"""What timm's Swin Transformers and HRNets need. Imports timm, which is slow: import it late."""

from __future__ import annotations

from timm.models.hrnet import HighResolutionNetFeatures, SequentialList
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .base import CheckpointedStage, run_block


class CheckpointedBranches(SequentialList):
    """Modules of an HRNet's stage, of which only the branches' inputs are kept for the backward pass."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        for module in self:
            # A list of its own: the module writes into it, and reads it again when it is recomputed.
            x = run_block(lambda *branches, module=module: module(list(branches)), *x, enabled=True)
        return x


def checkpoint_hrnet(model: HighResolutionNetFeatures) -> None:
    """Gradient checkpointing by residual block in the first stage, by module in the others, in place."""
    model.layer1 = CheckpointedStage(*model.layer1)
    for name in ("stage2", "stage3", "stage4"):
        setattr(model, name, CheckpointedBranches(*model.get_submodule(name)))


class PaddedSwinBlock(SwinTransformerBlock):
    """Pads the map to whole windows before it is shifted, as the official segmentation code does.

    timm shifts first. Its mask then holds rows apart that are neighbours, and lets rows of opposite edges
    attend to each other, unless the map is a multiple of the window.

    Args:
        block: timm's, whose layers and settings it takes over.
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)

    def _attn(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        window_height, window_width = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % window_width, 0, -height % window_height))
        return super()._attn(padded)[:, :height, :width]


def pad_before_shifting(model: nn.Module) -> None:
    """Put :class:`PaddedSwinBlock` in the place of the blocks of a Swin Transformer (first version)."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is SwinTransformerBlock:
                module.register_module(name, PaddedSwinBlock(child))
