"""Mix Transformer, the encoder of SegFormer (Xie et al., NeurIPS 2021, section 3.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FreezableBackbone, Part, run_block


class MitShape(NamedTuple):
    """Channels and blocks of the four stages."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]


_WIDE = (64, 128, 320, 512)
# Table 6 of the paper.
MIT_SHAPES = {
    "mit_b0": MitShape((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": MitShape(_WIDE, (2, 2, 2, 2)),
    "mit_b2": MitShape(_WIDE, (3, 4, 6, 3)),
    "mit_b3": MitShape(_WIDE, (3, 4, 18, 3)),
    "mit_b4": MitShape(_WIDE, (3, 8, 27, 3)),
    "mit_b5": MitShape(_WIDE, (3, 6, 40, 3)),
}
# The same in every size: attention heads, reduction of keys and values, kernel and stride of the patch
# embeddings, expansion of the Mix-FFN.
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
KERNELS = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)
EXPANSION = 4
# Of all norms, as MMSegmentation and GMMSeg's code train them; SegFormer's authors have 1e-5 in some.
EPSILON = 1e-6
# Stochastic depth of the last block in the official segmentation code.
DROP_PATH = 0.1


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution, then a LayerNorm. NCHW -> NHWC."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class EfficientAttention(nn.Module):
    """Self-attention of all positions to keys and values from a map that is ``reduction`` times smaller."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        kept = x
        if self.reduction > 1:
            kept = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        query = self.q(x).reshape(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
        key, value = (
            self.kv(kept).reshape(batch, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))


class DepthwiseConv(nn.Module):
    """3x3, in NHWC; its zero padding is where positions come from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MixFFN(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, EXPANSION * channels)
        self.dwconv = DepthwiseConv(EXPANSION * channels)
        self.fc2 = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class MitBlock(nn.Module):
    """Attention and Mix-FFN, each behind a norm and with stochastic depth. NHWC."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        from timm.layers import DropPath

        self.norm1 = nn.LayerNorm(channels, EPSILON)
        self.attn = EfficientAttention(channels, heads, reduction)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, EPSILON)
        self.mlp = MixFFN(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MixTransformer(FreezableBackbone):
    """Features of strides 4, 8, 16 and 32 under the names ``stage1`` to ``stage4``, NCHW.

    Parameters have the names of the official implementation (``patch_embed1``, ``block1``, ``norm1``, ...).
    ``FREEZE_AT`` 1 freezes the first patch embedding, 2 the first stage too, up to 5.

    Args:
        shape: channels and depths of the stages.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first one.
        in_channels: channels of the image.
    """

    def __init__(self, shape: MitShape, *, drop_path: float = DROP_PATH, in_channels: int = 3) -> None:
        super().__init__()
        self.grad_checkpointing = False
        last = sum(shape.depths) - 1
        rates = [drop_path * block / last for block in range(last + 1)]
        self._shapes: dict[str, ShapeSpec] = {}
        for index, (channels, depth) in enumerate(zip(shape.channels, shape.depths, strict=True)):
            embedding = PatchEmbedding(in_channels, channels, KERNELS[index], STRIDES[index])
            blocks = [MitBlock(channels, HEADS[index], REDUCTIONS[index], rates.pop(0)) for _ in range(depth)]
            self.add_module(f"patch_embed{index + 1}", embedding)
            self.add_module(f"block{index + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{index + 1}", nn.LayerNorm(channels, EPSILON))
            self._shapes[f"stage{index + 1}"] = ShapeSpec(channels=channels, stride=4 * 2**index)
            in_channels = channels
        self.apply(_initialise)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, 3, H, W) normalised images of 29 pixels or more -> {stage: (B, F, H / stride, W / stride)},
        rounded up. Keys and values miss the last rows and columns of what is no multiple of 32, as in the
        original."""
        features = {}
        for index, name in enumerate(self._shapes, start=1):
            x = self.get_submodule(f"patch_embed{index}")(x)
            for block in self.get_submodule(f"block{index}").children():
                x = run_block(block, x, enabled=self.grad_checkpointing)
            x = self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2).contiguous()
            features[name] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def frozen_parts(self, freeze_at: int) -> list[Part]:
        parts: list[Part] = [self.get_submodule("patch_embed1")]
        for index in range(1, freeze_at):
            parts += [self.get_submodule(f"{part}{index}") for part in ("patch_embed", "block", "norm")]
        return parts

    def set_grad_checkpointing(self) -> None:
        """By block."""
        self.grad_checkpointing = True


def _initialise(module: nn.Module) -> None:
    """As the official implementation does it."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_mit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MixTransformer:
    """``MODEL.BACKBONE.NAME`` "build_mit_backbone": keys ``MODEL.MIT.*``."""
    name, drop_path = cfg.MODEL.MIT.NAME, cfg.MODEL.BACKBONE.DROP_PATH
    if name not in MIT_SHAPES:
        raise ValueError(f"MODEL.MIT.NAME: expected one of {', '.join(MIT_SHAPES)}, found {name!r}")
    drop_path = drop_path if drop_path >= 0 else DROP_PATH
    backbone = MixTransformer(MIT_SHAPES[name], drop_path=drop_path, in_channels=input_shape.channels)
    backbone.name, backbone.hub = name, f"transformers:nvidia/{name.replace('_', '-')}"
    return backbone
