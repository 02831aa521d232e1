"""Image files that may be anything: what they claim to be is checked before a pixel is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

# What decoders are let loose on a file. Pillow knows more (PostScript, TIFF, ...), and tells them by content,
# not by extension.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
FORMAT_NAMES = "PNG, JPEG, WebP, BMP or PPM"
# Decoded, a file of a few kilobytes may be gigabytes.
MAX_PIXELS = 100_000_000

_ORIENTATION_TAG = 274
# Orientations that exchange height and width.
_TRANSPOSED = (5, 6, 7, 8)
# Modes of 8 bits or less a channel, which Pillow converts to RGB without loss of range.
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class RefusedImageError(ValueError):
    """A readable image that is not taken; the message names the file and says why."""


@contextmanager
def open_image(path: str, kind: str) -> Iterator[Image.Image]:
    """An image file, its header read and its size checked, nothing decoded.

    Args:
        kind: what it is to the caller, "image" or "label", for messages. What the caller does inside with the
            image is covered by the same errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a regular file, none of ``FORMATS``, more than ``MAX_PIXELS``, corrupt or cut off.
    """
    try:
        # Opening a pipe would wait for someone to write to it.
        if not Path(path).is_file() and Path(path).exists():
            raise RefusedImageError(f"{kind} {path} is not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(kind, path, f"{width} x {height} pixels")
            yield image
    except RefusedImageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"no {kind} {path}") from None
    except Image.DecompressionBombError as error:
        raise _too_large(kind, path, str(error)) from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{kind} {path} cannot be decoded: it is no {FORMAT_NAMES} file, or its header is corrupt"
        ) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(
            f"{kind} {path} cannot be decoded, it is corrupt or cut off ({type(error).__name__}: {error})"
        ) from error


def _too_large(kind: str, path: str, found: str) -> RefusedImageError:
    return RefusedImageError(
        f"{kind} {path}: at most {MAX_PIXELS // 10**6} megapixels are decoded, its header claims {found}. "
        "Cut it into parts or scale it down; if it is a small file, it may be made to fill the memory"
    )


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, as stored, where there is none or the EXIF block cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # Detectron2 takes such an image as it is stored
        return 1
    return found if found in range(1, 9) else 1


def transposed(turn: int) -> bool:
    """Whether an orientation exchanges height and width."""
    return turn in _TRANSPOSED


def upright(array: np.ndarray, turn: int) -> np.ndarray:
    """(H, W, ...) stored pixels as the EXIF orientation wants them seen: a view, turned or mirrored."""
    if transposed(turn):
        array = array.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def to_rgb(image: Image.Image, path: str) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded image, as stored.

    Palettes are looked up, grey is repeated, alpha is dropped, CMYK is converted. Of 16 bits a channel the
    upper 8 are kept, as Pillow does for colours of 16 bits.

    Raises:
        RefusedImageError: other modes, such as floating point.
    """
    if bits_16(image):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode not in _CONVERTIBLE:
        raise RefusedImageError(
            f"image {path} has pixels of Pillow's mode {image.mode!r}, which have no fixed range; images "
            "must have 8 or 16 bits a channel"
        )
    return np.asarray(image.convert("RGB"))


def bits_16(image: Image.Image) -> bool:
    """Whether the image is grey of 16 bits (which older versions of Pillow call mode "I")."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def png_bit_depth(path: str | Path) -> int:
    """Bit depth of a PNG: byte 24, in its IHDR chunk."""
    with open(path, "rb") as file:
        return file.read(25)[24]
