"""Layers that the decoders share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
    # To ask a compiler or an exporter about sizes that it leaves open would settle them.
    known = statically_known_true if torch.compiler.is_compiling() else bool
    if all(known(a == b) for a, b in zip(features.shape[-2:], size, strict=True)):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


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


class PooledBranch(nn.Module):
    """Average pooling to ``cells`` x ``cells``, then a 1x1 convolution with norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, cells: int, norm: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(cells)
        self.conv = conv_norm_relu(in_channels, channels, 1, norm)

    def forward(self, feature: Tensor) -> Tensor:
        """feature: (B, F, h, w) -> (B, channels, cells, cells).

        Raises:
            ValueError: training with batch norm on a single value per channel, which has no variance.
        """
        single = self.training and len(feature) == 1 and self.pool.output_size == 1
        if single and isinstance(self.conv.norm, nn.BatchNorm2d):
            raise ValueError(
                "MODEL.DECODER.NORM: batch norm after pooling to one cell needs two images or more per "
                "process while training, found one; raise SOLVER.IMS_PER_BATCH, or use "
                '"GN" ("SyncBN" on several GPUs)'
            )
        return self.conv(self.pool(feature))


class PyramidPooling(nn.Module):
    """Averages over coarse grids, each projected, beside the feature itself; a 3x3 convolution fuses them.

    The pyramid pooling module of PSPNet (Zhao et al., CVPR 2017).

    Args:
        in_channels: of the feature. channels: of each projection, and of the output.
        norm: a Detectron2 norm name.
        bins: cells per side of each grid.
    """

    def __init__(
        self, in_channels: int, channels: int, norm: str, *, bins: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(PooledBranch(in_channels, channels, cells, norm) for cells in bins)
        self.bottleneck = conv_norm_relu(in_channels + len(bins) * channels, channels, 3, norm)

    def forward(self, feature: Tensor) -> Tensor:
        """feature: (B, F, h, w) -> (B, channels, h, w)."""

        def parts() -> Iterator[Tensor]:
            yield feature
            for branch in self.branches:
                yield branch(feature)

        return convolve_parts(self.bottleneck, parts(), feature.shape[-2:])
