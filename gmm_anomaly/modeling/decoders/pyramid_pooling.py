"""The pyramid pooling module of PSPNet (Zhao et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import conv_norm_relu, convolve_parts, pool_to


class PyramidPooling(nn.Module):
    """Averages over coarse grids, each projected, beside the feature itself; a 3x3 convolution fuses them.

    Args:
        in_channels: of the feature. channels: of each projection, and of the output.
        bins: cells per side of each grid.
        norm: a Detectron2 norm name.

    Raises:
        ValueError: no grid, or one without cells.
    """

    def __init__(self, in_channels: int, channels: int, *, bins: Sequence[int], norm: str) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise ValueError(
                f"MODEL.DECODER.POOL_BINS: expected positive numbers of cells, found {list(bins)}"
            )
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(conv_norm_relu(in_channels, channels, 1, norm) for _ in self.bins)
        self.bottleneck = conv_norm_relu(in_channels + len(self.bins) * channels, channels, 3, norm)

    def forward(self, feature: Tensor) -> Tensor:
        """feature: (B, F, h, w) -> (B, channels, h, w)."""

        def parts():
            yield feature
            for cells, branch in zip(self.bins, self.branches, strict=True):
                yield pool_to(feature, cells, branch)

        return convolve_parts(self.bottleneck, parts(), feature.shape[-2:])
