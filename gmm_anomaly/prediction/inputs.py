"""Images as a person has them, whether array, picture, tensor or path, to (H, W, 3) uint8 RGB."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from gmm_anomaly.data.reading import IMAGE_FORMATS, read_image, upright_rgb

AnyImage: TypeAlias = "np.ndarray | torch.Tensor | Image.Image | str | os.PathLike[str]"


def as_rgb(image: AnyImage, format: str = "RGB") -> np.ndarray:
    """An image as an array.

    Args:
        image: (H, W, 3) uint8 array, (3, H, W) uint8 tensor on any device, PIL image, or path of a
            file. Files and PIL images are turned upright by their EXIF orientation.
        format: channel order of arrays and tensors, "RGB" or "BGR" (OpenCV's); the others know their own.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be decoded, another shape, an unknown format. TypeError: another type.
    """
    if format not in IMAGE_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(IMAGE_FORMATS)}, found {format!r}")
    if isinstance(image, str | os.PathLike):
        return read_image({"file_name": os.fspath(image)}, "RGB")
    if isinstance(image, Image.Image):
        return np.array(upright_rgb(image), order="C")
    if isinstance(image, torch.Tensor):
        return _ordered(_tensor(image), format)
    if isinstance(image, np.ndarray):
        return _ordered(_array(image), format)
    raise TypeError(
        "image: expected an (H, W, 3) uint8 array, a (3, H, W) uint8 tensor, a PIL image or a path, found "
        f"{type(image).__name__}"
    )


def _tensor(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        hint = "; give the images of a batch to predict()" if image.ndim == 4 else ""
        raise ValueError(f"image: expected a tensor (3, H, W), found {tuple(image.shape)}{hint}")
    _require_uint8(str(image.dtype).removeprefix("torch."), "a tensor")
    return image.detach().cpu().numpy().transpose(1, 2, 0)


def _array(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        hint = ""
        if image.ndim == 2:
            hint = "; of a grey image give np.stack([image] * 3, axis=-1)"
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = "; drop the fourth channel: image[..., :3]"
        elif image.ndim == 3 and image.shape[0] == 3:
            hint = "; channels come last in arrays: image.transpose(1, 2, 0)"
        elif image.ndim == 4:
            hint = "; give the images of a batch to predict()"
        raise ValueError(f"image: expected an array (H, W, 3), found {image.shape}{hint}")
    _require_uint8(str(image.dtype), "an array")
    return image


def _require_uint8(dtype: str, what: str) -> None:
    if dtype != "uint8":
        hint = " (values in [0, 1]: multiply by 255 and round first)" if "float" in dtype else ""
        raise ValueError(f"image: expected {what} of uint8, 0 to 255, found {dtype}{hint}")


def _ordered(image: np.ndarray, format: str) -> np.ndarray:
    return np.array(image if format == "RGB" else image[..., ::-1], order="C")


def describe(image: Any, index: int) -> str:
    """How an error names an image: its path, or its number from 1."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image number {index + 1}"
