"""Windows that cover an image, laid out as MMSegmentation's ``slide_inference`` does."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """image: (..., H, W) -> (..., height, width), a view."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


def window_grid(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """Windows in rows from the top left, all of one size; the last ones are shifted back into the image.

    Args:
        size: height and width of the image. window: of a window; where the image is smaller, the window is
            as small. stride: steps down and to the right, at most the window.
    """
    height, width = (min(pair) for pair in zip(size, window, strict=True))
    return [
        Window(top, left, height, width)
        for top in _starts(size[0], height, stride[0])
        for left in _starts(size[1], width, stride[1])
    ]


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = -(-(length - window) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]
