"""Reading images and labels of catalog records, whether they lie in files or are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from .label_rule import LabelRule
from .synthetic import render_street

IMAGE_FORMATS = ("RGB", "BGR")

_EXIF_ORIENTATION = 274
# Orientations that exchange height and width.
_TRANSPOSED = (5, 6, 7, 8)


def require_format(format: str) -> None:
    """Raise ValueError unless ``format`` is a channel order that images are read in."""
    if format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT: expected one of {', '.join(IMAGE_FORMATS)}, found {format!r}")


def read_image(record: Mapping[str, Any], format: str) -> np.ndarray:
    """Image of a record, turned upright by its EXIF orientation as in Detectron2.

    Args:
        record: with "render" or "file_name".
        format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous, the caller's own.

    Raises:
        FileNotFoundError: no such file. ValueError: the file cannot be decoded (names it), or an unknown
            format.
    """
    require_format(format)
    if "render" in record:
        image = _render(**record["render"])[0]
        return np.array(image if format == "RGB" else image[:, :, ::-1], order="C")
    path = record["file_name"]
    try:
        return np.array(detection_utils.read_image(path, format), order="C")
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(_undecodable("image", path, error)) from error


def read_label(record: Mapping[str, Any], metadata: Any) -> np.ndarray:
    """Label of a record, mapped as the data set's metadata say.

    Args:
        record: with "render" or "sem_seg_file_name".
        metadata: Detectron2's ``Metadata`` of the data set, or its ``LabelRule``.

    Returns:
        (H, W) uint8: train ids, or 0 known / 1 anomaly; 255 is ignored. The caller's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the label is withheld, cannot be decoded, is not a single-channel 8-bit PNG, holds a value
            outside the classes, or has another size than its image. Each names the file.
    """
    rule = metadata if isinstance(metadata, LabelRule) else LabelRule.from_metadata(metadata)
    if "render" in record:
        return rule.apply(_render(**record["render"])[1], str(record["file_name"]))
    if "sem_seg_file_name" not in record:
        raise ValueError(
            f"{rule.dataset}: the label of {record['file_name']} is withheld by the benchmark; the image "
            "can be predicted, but not evaluated or trained on"
        )
    path = record["sem_seg_file_name"]
    label = rule.apply(read_raw_label(path), path)
    # Labels may be read without their images (scores of other programs); a missing image is its reader's
    # error.
    image = record["file_name"]
    if Path(image).is_file() and image_size(image) != label.shape:
        height, width = image_size(image)
        raise ValueError(
            f"the label {path} is {label.shape[1]} x {label.shape[0]} (width x height), its image {image} is "
            f"{width} x {height}; they must be of the same size"
        )
    return label


def read_raw_label(path: str) -> np.ndarray:
    """(H, W) uint8 values of a label PNG as stored; palette images give their indices. Errors as
    ``read_label``."""
    try:
        with Image.open(path) as image:
            kind = image.format
            mode = image.mode
            image.load()
            values = np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no label {path}") from None
    except Exception as error:
        raise ValueError(_undecodable("label", path, error)) from error
    # PIL stretches the values of 1-, 2- and 4-bit grey images over 0 .. 255.
    if kind != "PNG" or mode not in ("L", "P") or (mode == "L" and _bit_depth(path) != 8):
        raise ValueError(
            f"{path}: a label must be a PNG of one 8-bit channel whose pixels are label values (mode L, or P "
            f"with a palette); found {kind} of mode {mode}"
            + (f" with {_bit_depth(path)} bits" if kind == "PNG" else "")
        )
    return values


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image file, upright, from its header alone. Errors as ``read_image``."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}") from None
    except Exception as error:
        raise ValueError(_undecodable("image", path, error)) from error
    return (width, height) if turned else (height, width)


def _bit_depth(path: str) -> int:
    """Bit depth of a PNG: byte 24, in its IHDR chunk."""
    with open(path, "rb") as file:
        return file.read(25)[24]


def _undecodable(kind: str, path: str, error: Exception) -> str:
    return f"{kind} {path} cannot be decoded, it is corrupt or cut off ({type(error).__name__}: {error})"


# Image and label of a frame are asked for one after the other, in several threads at once in deep checks.
@lru_cache(maxsize=8)
def _render(seed: int, index: int, height: int, width: int, anomalies: bool) -> tuple[np.ndarray, np.ndarray]:
    image, label = render_street(seed, index, height=height, width=width, anomalies=anomalies)
    for array in (image, label):
        array.setflags(write=False)
    return image, label
