"""Convolutions with TensorFlow's padding, whose width is a constant once strides divide the image's size."""

from __future__ import annotations

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F


class ConstantSame(nn.Module):
    """A ``Conv2dSame`` whose input's height and width are multiples of its stride.

    timm computes the padding from the size of each input, which exporters can hardly follow.
    """

    def __init__(self, convolution: Conv2dSame) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.stride, self.dilation = convolution.stride, convolution.dilation
        self.groups = convolution.groups
        # Left, right, top, bottom: the odd one at the end.
        self.padding: list[int] = []
        for axis in (1, 0):
            reach = (convolution.kernel_size[axis] - 1) * self.dilation[axis] + 1
            total = max(reach - self.stride[axis], 0)
            self.padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, self.padding)
        return F.conv2d(
            padded, self.weight, self.bias, self.stride, dilation=self.dilation, groups=self.groups
        )


def make_padding_constant(network: nn.Module) -> None:
    """Replace every ``Conv2dSame`` inside, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(module, name, ConstantSame(child))
