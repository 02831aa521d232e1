"""Convolutions that the decoders share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """Convolution that keeps the size, norm and ReLU; it has a bias only without a norm."""
    convolution = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(inplace=True),
    )
    weight_init.c2_msra_fill(convolution)
    return convolution


def separable_conv(
    in_channels: int, out_channels: int, norm: str, *, dilation: int = 1
) -> DepthwiseSeparableConv2d:
    """A 3x3 convolution of each channel, then a 1x1 convolution, each with norm and ReLU."""
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        padding=dilation,
        dilation=dilation,
        norm1=norm,
        activation1=nn.ReLU(inplace=True),
        norm2=norm,
        activation2=nn.ReLU(inplace=True),
    )


def resize(features: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear interpolation (align_corners False) of (B, F, h, w) to ``size``."""
    if _same(features.shape[-2:], size):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def _same(found: torch.Size, wanted: torch.Size | tuple[int, int]) -> bool:
    if torch.compiler.is_compiling():
        # Of sizes that are not known, only where they are the same whatever the image's.
        return all(statically_known_true(a == b) for a, b in zip(found, wanted, strict=True))
    return found == torch.Size(wanted)


def convolve_parts(
    convolution: Conv2d, parts: Iterable[Tensor], size: torch.Size | tuple[int, int]
) -> Tensor:
    """``convolution`` of the parts, resized to ``size`` and put together along the channels.

    The concatenation never exists, which is the largest tensor of these decoders: a convolution is a sum over
    its input channels. A 1x1 convolution commutes with the interpolation, so that each part is convolved at
    its own size.

    Args:
        convolution: with as many input channels as all parts together.
        parts: (B, F_i, h_i, w_i); taken one by one, so that a generator need not hold them all.

    Returns:
        (B, out_channels, *size), with norm and activation applied.
    """
    total, start = None, 0
    pointwise = convolution.kernel_size == (1, 1)
    for part in parts:
        weight = convolution.weight[:, start : start + part.shape[1]]
        start += part.shape[1]
        if pointwise:
            convolved = resize(F.conv2d(part, weight), size)
        else:
            convolved = F.conv2d(resize(part, size), weight, padding=convolution.padding)
        total = convolved if total is None else total + convolved
    assert total is not None and start == convolution.in_channels
    if convolution.bias is not None:
        total = total + convolution.bias[:, None, None]
    if convolution.norm is not None:
        total = convolution.norm(total)
    return total if convolution.activation is None else convolution.activation(total)


def pool_to(features: Tensor, bins: int, branch: Conv2d) -> Tensor:
    """Average pooling to ``bins`` x ``bins``, then ``branch``.

    Raises:
        ValueError: training with batch norm on a single value per channel, which has no variance.
    """
    if branch.training and bins == 1 and len(features) == 1 and isinstance(branch.norm, nn.BatchNorm2d):
        raise ValueError(
            "MODEL.DECODER.NORM: batch norm after pooling to one cell needs two images or more per process "
            'while training, found one; raise SOLVER.IMS_PER_BATCH, or use "GN" ("SyncBN" on several GPUs)'
        )
    if bins > 1 and torch.compiler.is_compiling():
        return branch(_pooled_by_products(features, bins))
    return branch(F.adaptive_avg_pool2d(features, bins))


def _pooled_by_products(features: Tensor, bins: int) -> Tensor:
    """``F.adaptive_avg_pool2d`` as two matrix products: no exporter has it for a size that is not known."""
    height, width = features.shape[-2:]
    across = F.linear(features, _cell_weights(width, bins, features))
    return F.linear(across.transpose(2, 3), _cell_weights(height, bins, features)).transpose(2, 3)


def _cell_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """(bins, length): the share of each position in the mean of each cell."""
    cell = torch.arange(bins, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    start, stop = cell * length // bins, ((cell + 1) * length + bins - 1) // bins
    inside = ((position >= start) & (position < stop)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
