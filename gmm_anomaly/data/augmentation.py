"""Training augmentations that Detectron2 lacks, as its ``Augmentation`` and ``Transform`` classes.

All randomness comes from numpy's global generator, which the training stream seeds for every image anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation
from fvcore.transforms.transform import NoOpTransform, Transform

from .label_rule import IGNORE_LABEL

# ITU-R BT.601, as in Detectron2's RandomSaturation.
_LUMA = {"RGB": (0.299, 0.587, 0.114), "BGR": (0.114, 0.587, 0.299)}


class _PixelTransform(Transform):
    """Transform of images and label images; boxes and coordinates have no place in this project's data."""

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} transforms images and label images only")


class WindowResize(_PixelTransform):
    """Cut a window out and resize it: bilinear for images, nearest for labels, pixel centres aligned.

    Args:
        window: top, left, height and width in the source, in pixels.
        size: height and width of the result.
    """

    def __init__(self, window: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.size = size

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._apply(img, cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._apply(segmentation, cv2.INTER_NEAREST_EXACT)

    def _apply(self, source: np.ndarray, interpolation: int) -> np.ndarray:
        top, left, height, width = self.window
        cut = source[top : top + height, left : left + width]
        if (height, width) == self.size:
            return cut
        return cv2.resize(cut, self.size[::-1], interpolation=interpolation)


class RandomScaledCrop(Augmentation):
    """Scale by a random factor and crop, without scaling what the crop leaves out.

    A crop of the scaled image is a smaller or larger window of the source, so only the window is resized.
    Where the scaled image is smaller than the crop it is kept whole (``PadTo`` fills the rest).

    Args:
        scale_range: the factor is drawn uniformly from it.
        crop_size: height and width; None: no crop, the whole image is scaled.
        max_area: a window is drawn again, up to ten times, while one class covers more than this share of its
            labelled pixels or none is labelled; 1.0 takes the first one.
        base_size: shorter and longer side, within which an image is fitted before the factor applies (as with
            MMSegmentation's ``Resize`` of a ratio range); None: the factor is of the image as it is.
    """

    redraws = 10

    def __init__(
        self,
        scale_range: tuple[float, float],
        crop_size: tuple[int, int] | None,
        max_area: float = 1.0,
        base_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"INPUT.SCALE_RANGE: expected 0 < low <= high, found {list(scale_range)}")
        if crop_size is not None and min(crop_size) < 1:
            raise ValueError(f"INPUT.CROP.SIZE: expected positive pixels, found {list(crop_size)}")
        if not 0 < max_area <= 1:
            raise ValueError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA: expected 0 < share <= 1, found {max_area}"
            )
        if base_size is not None and (len(base_size) != 2 or not 0 < base_size[0] <= base_size[1]):
            raise ValueError(
                f"INPUT.SCALE_BASE: expected a shorter and a longer side in pixels, found {list(base_size)}"
            )
        self.scale_range = scale_range
        self.crop_size = crop_size
        self.max_area = max_area
        self.base_size = base_size

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(*self.scale_range)
        if self.base_size is not None:
            sides = sorted((height, width))
            scale *= min(base / side for base, side in zip(self.base_size, sides, strict=True))
        limits = (None, None) if self.crop_size is None else self.crop_size
        window_height, size_height = _extent(height, scale, limits[0])
        window_width, size_width = _extent(width, scale, limits[1])
        for _ in range(self.redraws + 1):
            top = np.random.randint(height - window_height + 1)
            left = np.random.randint(width - window_width + 1)
            if self._is_varied(sem_seg[top : top + window_height, left : left + window_width]):
                break
        return WindowResize((top, left, window_height, window_width), (size_height, size_width))

    def _is_varied(self, label: np.ndarray) -> bool:
        if self.max_area >= 1.0:
            return True
        counts = np.bincount(label.ravel(), minlength=256)
        counts[IGNORE_LABEL] = 0
        return 0 < counts.max() <= self.max_area * counts.sum()


def _extent(source: int, scale: float, crop: int | None) -> tuple[int, int]:
    """Length of the window in the source and of its scaled result, along one axis."""
    scaled = max(1, round(source * scale))
    if crop is None or scaled <= crop:
        return source, scaled
    return min(source, max(1, round(crop / scale))), crop


class PadTo(Augmentation):
    """Pad at the bottom and the right to a size: the image with a colour, the label with 255.

    Args:
        size: height and width.
        color: (3,) in the image's channel order.
    """

    def __init__(self, size: tuple[int, int], color: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.color = tuple(float(np.clip(round(value), 0, 255)) for value in color)

    def get_transform(self, image: np.ndarray) -> Transform:
        bottom = max(0, self.size[0] - image.shape[0])
        right = max(0, self.size[1] - image.shape[1])
        return PadBottomRight(bottom, right, self.color) if bottom or right else NoOpTransform()


class PadBottomRight(_PixelTransform):
    """Append ``bottom`` rows and ``right`` columns of ``color``; 255 in labels."""

    def __init__(self, bottom: int, right: int, color: tuple[float, ...]) -> None:
        super().__init__()
        self.bottom = bottom
        self.right = right
        self.color = color

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.copyMakeBorder(img, 0, self.bottom, 0, self.right, cv2.BORDER_CONSTANT, value=self.color)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return np.pad(segmentation, ((0, self.bottom), (0, self.right)), constant_values=IGNORE_LABEL)


class RandomColorJitter(Augmentation):
    """Random brightness, then contrast around the image's mean, then saturation around its grey image.

    Each is linear in the pixel, so the three are one 3 x 4 matrix, applied once.

    Args:
        amount: each factor is drawn uniformly from 1 - amount to 1 + amount.
        format: "RGB" or "BGR", the channel order of the images.
    """

    def __init__(self, amount: float, format: str) -> None:
        super().__init__()
        if not 0 <= amount <= 1:
            raise ValueError(f"INPUT.COLOR_JITTER: expected 0 to 1, found {amount}")
        self.amount = amount
        self.luma = np.array(_LUMA[format])

    def get_transform(self, image: np.ndarray) -> Transform:
        brightness, contrast, saturation = np.random.uniform(1 - self.amount, 1 + self.amount, 3)
        mean = brightness * float(np.mean(cv2.mean(image)[:3]))
        grey = np.tile(self.luma, (3, 1))
        # Grey weights sum to 1, so the saturation step leaves a constant offset as it is.
        matrix = (saturation * np.eye(3) + (1 - saturation) * grey) * (contrast * brightness)
        offset = (1 - contrast) * mean
        return ColorMatrix(np.hstack([matrix, np.full((3, 1), offset)]))


class ColorMatrix(_PixelTransform):
    """Affine map of the colours: ``matrix`` (3, 4) float64; rounded and clipped to uint8. Labels stay."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.matrix = matrix

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.transform(img, self.matrix)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation
