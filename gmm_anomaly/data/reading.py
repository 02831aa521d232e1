"""Reading images and labels of catalog records, whether they lie in files or are rendered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .label_rule import LabelRule
from .streets import render_street

IMAGE_FORMATS = ("RGB", "BGR")

_ORIENTATION_TAG = 274


def require_format(format: str) -> None:
    """Raise ValueError unless ``format`` is a channel order that images are read in."""
    if format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT: expected one of {', '.join(IMAGE_FORMATS)}, found {format!r}")


@contextmanager
def open_image(path: str | Path, kind: str) -> Iterator[Image.Image]:
    """An image file whose header is read; what is done with it inside has the same errors.

    Args:
        kind: what it is to the caller, "image" or "label", for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image, a corrupt or cut off one, or one larger than Pillow's limit.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"no {kind} {path}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{kind} {path} is too large ({error}); cut it into parts, scale it down, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(
            f"{kind} {path} cannot be decoded ({type(error).__name__}: {error}); it may be corrupt or cut off"
        ) from error


def upright_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PIL image, turned by its EXIF orientation as in Detectron2; perhaps read-only.

    Palettes are looked up, grey is repeated, alpha is dropped, CMYK is converted; of 16 bits a channel the
    upper 8 are kept.

    Raises:
        ValueError: floating point pixels.
    """
    if image.mode == "F":
        raise ValueError("its floating point pixels have no fixed range; images have 8 or 16 bits a channel")
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if is_16_bits(image):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, as stored, where there is none or the EXIF block cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Detectron2 takes such an image as it is stored
        return 1


def is_16_bits(image: Image.Image) -> bool:
    """Whether the image is grey of 16 bits (which older versions of Pillow call mode "I")."""
    return image.mode.startswith("I;16") or image.mode == "I"


def read_image(record: Mapping[str, Any], format: str) -> np.ndarray:
    """Image of a record as ``upright_rgb`` has it.

    Args:
        record: with "render" or "file_name".
        format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous, the caller's own.

    Raises:
        FileNotFoundError: no such file. ValueError: it cannot be decoded (names it), or an unknown format.
    """
    require_format(format)
    if "render" in record:
        image = _render(**record["render"])[0]
    else:
        with open_image(record["file_name"], "image") as stored:
            image = upright_rgb(stored)
    return np.array(image if format == "RGB" else image[:, :, ::-1], order="C")


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file, upright. Errors as ``read_image``."""
    with open_image(path, "image") as image:
        width, height = image.size
        # Orientations that exchange height and width.
        return (width, height) if orientation(image) in (5, 6, 7, 8) else (height, width)


def read_label(
    record: Mapping[str, Any], metadata: Any, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Label of a record, mapped as the data set's metadata say.

    Args:
        record: with "render" or "sem_seg_file_name".
        metadata: Detectron2's ``Metadata`` of the data set, or its ``LabelRule``.
        size: height and width of the image, where it was read already; None: its file is asked, if it is
            there (scores of other programs are measured without their images).

    Returns:
        (H, W) uint8: train ids, or 0 known / 1 anomaly; 255 is ignored. The caller's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the label is withheld, cannot be decoded, is not a single-channel PNG of values up to 255,
            holds a value outside the classes, or has another size than its upright image. Each names the
            file.
    """
    rule = metadata if isinstance(metadata, LabelRule) else LabelRule.from_metadata(metadata)
    image = record["file_name"]
    if "render" in record:
        return rule.apply(_render(**record["render"])[1], str(image))
    if "sem_seg_file_name" not in record:
        raise ValueError(
            f"{rule.dataset}: the label of {image} is withheld by the benchmark; the image can be predicted, "
            "but not evaluated or trained on"
        )
    path = record["sem_seg_file_name"]
    label = rule.apply(read_raw_label(path), path)
    if size is None and Path(image).is_file():
        size = image_size(image)
    if size is not None and size != label.shape:
        raise ValueError(
            f"the label {path} is {label.shape[1]} x {label.shape[0]} (width x height), its image {image} is "
            f"{size[1]} x {size[0]} (upright, by its EXIF orientation); they must be of the same size"
        )
    return label


def read_raw_label(path: str | Path) -> np.ndarray:
    """(H, W) uint8 values of a label PNG as stored; palette images give their indices.

    16 bits are taken where every value fits into 8. Errors as ``read_label``.
    """
    with open_image(path, "label") as image:
        values = np.asarray(image)
        with open(path, "rb") as file:  # byte 24 of a PNG, in its IHDR chunk
            depth = file.read(25)[24] if image.format == "PNG" else 0
        turn, wide = orientation(image), is_16_bits(image)
    found = f"{image.format} of mode {image.mode}, {depth} bits"
    # Pillow stretches the values of 1-, 2- and 4-bit grey images over 0 .. 255.
    if not depth or not (wide or image.mode == "P" or (image.mode == "L" and depth == 8)):
        raise ValueError(
            f"{path}: a label must be a PNG of one 8-bit channel whose pixels are label values (mode L, or P "
            f"with a palette); found {found}"
        )
    if turn != 1:
        raise ValueError(
            f"{path}: the label has the EXIF orientation {turn}; labels are read as stored. Turn its pixels "
            "and remove the tag"
        )
    if wide and values.max() > 255:
        raise ValueError(
            f"{path}: label values must fit into 8 bits, found 16 bits with values up to {values.max()}; map "
            "them to 0 .. 255 before"
        )
    return values.astype(np.uint8, copy=False)


# Image and label of a frame are asked for one after the other, in several threads at once in deep checks.
@lru_cache(maxsize=8)
def _render(seed: int, index: int, height: int, width: int, anomalies: bool) -> tuple[np.ndarray, np.ndarray]:
    image, label = render_street(seed, index, height=height, width=width, anomalies=anomalies)
    for array in (image, label):
        array.setflags(write=False)
    return image, label
