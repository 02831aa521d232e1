"""How a segmentor looks at a test image: whole or in windows, at which scales, mirrored as well or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.scores import PixelOutputs

LOGITS, FEATURES = "logits", "features"

# Windows of images that are too large to be looked at whole: MMSegmentation's for Cityscapes.
LARGE_WINDOW, LARGE_STRIDE = (768, 768), (512, 512)

# Normalised images (3, H, W) -> their outputs, and the one size that they were padded to.
Network = Callable[[list[Tensor]], tuple[list[PixelOutputs], tuple[int, int]]]


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """image: (..., H, W) -> (..., height, width), a view."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Look(NamedTuple):
    """One look at an image: its geometry as (height, width), and what the network said.

    size: of the scaled image. windows: of it. padded: what each window was padded to. tiles: one output for
    each window.
    """

    size: tuple[int, int]
    windows: Sequence[Window]
    padded: tuple[int, int]
    mirrored: bool
    tiles: Sequence[Any]


@dataclass(frozen=True)
class InferenceMode:
    """What the keys under ``TEST`` say about inference. The default is one look at the whole image.

    Attributes:
        window, stride: height and width of the sliding windows and of their steps; None: the whole image.
        max_whole_pixels: images of more pixels, after scaling, are looked at in windows of 768 x 768 every
            512 pixels if no window is given; 0: never.
        scales: factors by which the image is resized, one look for each.
        flip: look at the mirrored image as well, at each scale.
        score_on: "logits": outputs are restored to the image's size, and averaged over the looks, before
            scores are computed from them. "features": scores are computed at the resolution of the features,
            restored and averaged.

    Raises:
        ValueError: steps larger than the windows.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    score_on: str = LOGITS
    max_whole_pixels: int = 8_000_000

    def __post_init__(self) -> None:
        window, stride = self.window, self.stride
        if window and stride and (stride[0] > window[0] or stride[1] > window[1]):
            raise ValueError(
                f"TEST.SLIDING_WINDOW.STRIDE: {list(stride)} exceeds SIZE {list(window)}, so that "
                "pixels between the windows would never be seen; lower STRIDE or raise SIZE"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceMode:
        windows, looks = cfg.TEST.SLIDING_WINDOW, cfg.TEST.AUG
        return cls(
            window=tuple(windows.SIZE) if windows.ENABLED else None,
            stride=tuple(windows.STRIDE) if windows.ENABLED else None,
            scales=tuple(map(float, looks.SCALES)) if looks.ENABLED else (1.0,),
            flip=bool(looks.FLIP) if looks.ENABLED else False,
            score_on=cfg.TEST.SCORE_ON,
            max_whole_pixels=int(cfg.TEST.MAX_WHOLE_PIXELS),
        )

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Windows that cover an image of this height and width: one, or the sliding ones."""
        if self.window is None or self.stride is None:
            if 0 < self.max_whole_pixels < size[0] * size[1]:
                return window_grid(size, LARGE_WINDOW, LARGE_STRIDE)
            return [Window(0, 0, *size)]
        return window_grid(size, self.window, self.stride)

    def see(self, images: Sequence[Tensor], network: Network) -> list[list[Look]]:
        """The looks at each image, with every window through the network.

        Args:
            images: (3, H, W) float32 each, normalised, of any sizes. Whole ones go through the network
                together, windows one after the other.
        """
        found: list[list[Look]] = [[] for _ in images]
        for scale, mirrored in product(self.scales, (False, True)[: 1 + self.flip]):
            views = [transformed(image, scale, mirrored) for image in images]
            grids = [self.windows(view.shape[-2:]) for view in views]
            if self.window is None and max(map(len, grids)) == 1:
                tiles, padded = network(views)
                seen = [([tile], padded) for tile in tiles]
            else:
                seen = []
                for view, grid in zip(views, grids, strict=True):
                    each = [network([window.cut(view)]) for window in grid]
                    seen.append(([tile for (tile,), _ in each], each[0][1]))
            for looks, view, grid, (tiles, padded) in zip(found, views, grids, seen, strict=True):
                looks.append(Look(view.shape[-2:], grid, padded, mirrored, tiles))
        return found


def window_grid(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """Windows in rows from the top left, all of one size, as MMSegmentation's ``slide_inference`` lays them;
    the last ones are shifted back into the image.

    Args:
        size: height and width of the image. window: of a window; where the image is smaller, the window is
            as small. stride: steps down and to the right, at most the window.
    """

    def starts(length: int, window: int, stride: int) -> list[int]:
        steps = -(-(length - window) // stride)
        return [min(step * stride, length - window) for step in range(steps + 1)]

    height, width = (min(pair) for pair in zip(size, window, strict=True))
    return [
        Window(top, left, height, width)
        for top in starts(size[0], height, stride[0])
        for left in starts(size[1], width, stride[1])
    ]


def transformed(image: Tensor, scale: float, mirrored: bool = False) -> Tensor:
    """image: (3, H, W), resized bilinearly by a factor, and mirrored."""
    if scale != 1:
        size = scaled_size(image.shape[-2:], scale)
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    return image.flip(-1) if mirrored else image


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width after resizing by a factor: rounded, and at least one pixel."""
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width
