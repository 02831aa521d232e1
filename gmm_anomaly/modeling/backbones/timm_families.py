"""What timm's Swin Transformers and HRNets need. Imports timm, which is slow: import it late."""

from __future__ import annotations

from timm.models.hrnet import HighResolutionModule, HighResolutionNetFeatures, SequentialList
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..decoders.blocks import resize
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


class SizedFusion(HighResolutionModule):
    """Adds the branches at the size of each one, so that images need no padding, enlarged bilinearly, as the
    official segmentation code does it (timm, for classification: by whole factors, to the nearest).

    Args:
        module: timm's, whose layers and settings it takes over.
    """

    def __init__(self, module: HighResolutionModule) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(module.__dict__)
        for part in self.modules():
            if isinstance(part, nn.Upsample):
                part.mode, part.align_corners = "bilinear", False

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(feature) for branch, feature in zip(self.branches, x, strict=True)]
        fused = []
        for row, own in zip(self.fuse_layers, x, strict=True):
            # An empty row is that of a level that nobody reads.
            parts = [resize(fuse(feature), own.shape[-2:]) for fuse, feature in zip(row, x, strict=False)]
            fused.append(self.fuse_act(sum(parts)) if parts else own)
        return fused


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


def adapt(model: nn.Module) -> None:
    """Make a Swin Transformer or an HRNet of timm take any size, as the official segmentation code does."""
    if hasattr(model, "patch_embed"):
        model.patch_embed.dynamic_img_pad = True
    instead = {SwinTransformerBlock: PaddedSwinBlock, HighResolutionModule: SizedFusion}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in instead:
                module.register_module(name, instead[type(child)](child))
