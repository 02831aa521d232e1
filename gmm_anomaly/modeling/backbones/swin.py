"""What timm's Swin Transformers need to see images of any size as the official segmentation code does."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedSwinBlock(SwinTransformerBlock):
    """Pads the map to whole windows before it is shifted, as the official segmentation code does.

    timm shifts first. Its mask then holds rows apart that are neighbours, and lets rows of opposite edges
    attend to each other, unless the map is a multiple of the window.
    """

    def _attn(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        window_height, window_width = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % window_width, 0, -height % window_height))
        return super()._attn(padded)[:, :height, :width]


def pad_before_shifting(model: nn.Module) -> None:
    """Turn the blocks of a Swin Transformer (first version) into :class:`PaddedSwinBlock`, in place."""
    for module in model.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = PaddedSwinBlock
