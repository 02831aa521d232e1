"""Reading images and labels of catalog records, whether they lie in files or are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .image_files import (
    RefusedImageError,
    bits_16,
    open_image,
    orientation,
    png_bit_depth,
    to_rgb,
    transposed,
    upright,
)
from .label_rule import LabelRule
from .streets import render_street

IMAGE_FORMATS = ("RGB", "BGR")


def require_format(format: str) -> None:
    """Raise ValueError unless ``format`` is a channel order that images are read in."""
    if format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT: expected one of {', '.join(IMAGE_FORMATS)}, found {format!r}")


def read_image(record: Mapping[str, Any], format: str) -> np.ndarray:
    """Image of a record, turned upright by its EXIF orientation as in Detectron2.

    PNG, JPEG, WebP, BMP or PPM of at most 100 megapixels. Grey and palette images become three channels,
    alpha is dropped, of 16 bits a channel the upper 8 are kept.

    Args:
        record: with "render" or "file_name".
        format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous, the caller's own.

    Raises:
        FileNotFoundError: no such file. ValueError: the file is refused or cannot be decoded (names it), or
            an unknown format.
    """
    require_format(format)
    if "render" in record:
        image = _render(**record["render"])[0]
        return np.array(image if format == "RGB" else image[:, :, ::-1], order="C")
    path = record["file_name"]
    with open_image(path, "image") as stored:
        stored.load()
        image = upright(to_rgb(stored, path), orientation(stored))
    return np.array(image if format == "RGB" else image[:, :, ::-1], order="C")


def read_label(record: Mapping[str, Any], metadata: Any) -> np.ndarray:
    """Label of a record, mapped as the data set's metadata say.

    Args:
        record: with "render" or "sem_seg_file_name".
        metadata: Detectron2's ``Metadata`` of the data set, or its ``LabelRule``.

    Returns:
        (H, W) uint8: train ids, or 0 known / 1 anomaly; 255 is ignored. The caller's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the label is withheld, cannot be decoded, is not a single-channel PNG of values up to 255,
            holds a value outside the classes, or has another size than its upright image. Each names the
            file.
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
    if not Path(image).is_file():
        return label
    (height, width), turn = _oriented_size(image)
    if (height, width) != label.shape:
        turned = f" upright (it has the EXIF orientation {turn})" if turn != 1 else ""
        raise ValueError(
            f"the label {path} is {label.shape[1]} x {label.shape[0]} (width x height), its image {image} is "
            f"{width} x {height}{turned}; they must be of the same size"
        )
    return label


def read_raw_label(path: str) -> np.ndarray:
    """(H, W) uint8 values of a label PNG as stored; palette images give their indices.

    16 bits are taken where every value fits into 8. Errors as ``read_label``.
    """
    with open_image(path, "label") as image:
        kind, mode = image.format, image.mode
        image.load()
        values = np.asarray(image)
        turned = orientation(image)
        wide = bits_16(image)
        depth = png_bit_depth(path) if kind == "PNG" else 0
        # PIL stretches the values of 1-, 2- and 4-bit grey images over 0 .. 255.
        if kind != "PNG" or not (wide or mode == "P" or (mode == "L" and depth == 8)):
            raise RefusedImageError(
                f"{path}: a label must be a PNG of one 8-bit channel whose pixels are label values (mode L, "
                f"or P with a palette); found {kind} of mode {mode}"
                + (f" with {depth} bits" if kind == "PNG" else "")
                + ("; colours are no label values" if len(image.getbands()) > 2 else "")
            )
        if wide and values.max() > 255:
            raise RefusedImageError(
                f"{path}: label values must fit into 8 bits, found 16 bits with values up to {values.max()}; "
                "map them to 0 .. 255 before"
            )
        if turned != 1:
            raise RefusedImageError(
                f"{path}: the label has the EXIF orientation {turned}; labels are read as stored. Turn its "
                "pixels and remove the tag"
            )
    return values.astype(np.uint8, copy=False)


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image file, upright. Errors as ``read_image``."""
    return _oriented_size(path)[0]


def _oriented_size(path: str) -> tuple[tuple[int, int], int]:
    """Height and width, upright, and the EXIF orientation."""
    with open_image(path, "image") as image:
        width, height = image.size
        turn = orientation(image)
    return ((width, height) if transposed(turn) else (height, width)), turn


# Image and label of a frame are asked for one after the other, in several threads at once in deep checks.
@lru_cache(maxsize=8)
def _render(seed: int, index: int, height: int, width: int, anomalies: bool) -> tuple[np.ndarray, np.ndarray]:
    image, label = render_street(seed, index, height=height, width=width, anomalies=anomalies)
    for array in (image, label):
        array.setflags(write=False)
    return image, label
