"""Layers of decoders, step by step in plain operations."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F


def plain(layer, x):
    """Convolution, norm and ReLU of a layer, one by one."""
    options = {"padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    x = F.conv2d(x, layer.weight, layer.bias, **options)
    if layer.norm is not None:
        scale = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
        x = (x - layer.norm.running_mean[:, None, None]) * scale[:, None, None]
        x = x + layer.norm.bias[:, None, None]
    return x.clamp(min=0)


def separable(layer, x):
    return plain(layer.pointwise, plain(layer.depthwise, x))


def up(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def average_cells(x, bins):
    """Adaptive average pooling: cell i of n covers floor(i * s / n) to ceil((i + 1) * s / n)."""
    height, width = x.shape[-2:]
    out = x.new_zeros(*x.shape[:2], bins, bins)
    for i, j in itertools.product(range(bins), range(bins)):
        rows = slice(i * height // bins, -(-(i + 1) * height // bins))
        columns = slice(j * width // bins, -(-(j + 1) * width // bins))
        out[..., i, j] = x[..., rows, columns].mean((-2, -1))
    return out


def pooled_pyramid(module, x):
    parts = [x]
    for bins, branch in zip((1, 2, 3, 6), module.branches, strict=True):
        parts.append(up(plain(branch.conv, average_cells(x, bins)), x.shape[-2:]))
    return plain(module.bottleneck, torch.cat(parts, 1))
