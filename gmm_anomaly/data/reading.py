"""Reading images and labels of catalog records, whether they lie in files or are rendered, and what the
values of labels mean: train ids (closed sets) or {0, 1, 255} (anomaly sets)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from .streets import render_street

IMAGE_FORMATS = ("RGB", "BGR")

IGNORE_LABEL = 255
CLOSED_SET = "closed_set"
ANOMALY = "anomaly"
# Stands for "not allowed" in the look-up table, so that one comparison finds it; no class may have this id.
_REFUSED = 254
_ORIENTATION_TAG = 274
# Image and label of a frame are asked for one after the other, in several threads at once in deep checks.
_render = lru_cache(maxsize=8)(render_street)


@contextmanager
def _open_image(path: str | Path, kind: str) -> Iterator[Image.Image]:
    """An "image" or "label" file; what is done with it inside has the same errors, which name it."""
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
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if _is_16_bits(image):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, as stored, where there is none or the EXIF block cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Detectron2 takes such an image as it is stored
        return 1


def _is_16_bits(image: Image.Image) -> bool:
    # Older versions of Pillow call it mode "I".
    return image.mode.startswith("I;16") or image.mode == "I"


def has_label(record: Mapping[str, Any]) -> bool:
    """Whether the label of a record can be read: it names a file, or is rendered."""
    return "sem_seg_file_name" in record or "render" in record


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
    if format not in IMAGE_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(IMAGE_FORMATS)}, found {format!r}")
    if "render" in record:
        image = _render(**record["render"])[0]
    else:
        with _open_image(record["file_name"], "image") as stored:
            image = upright_rgb(stored)
    return np.array(image if format == "RGB" else image[:, :, ::-1], order="C")


def image_size(record: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a record's image, upright. Errors as ``read_image``."""
    if "render" in record:
        return record["render"]["height"], record["render"]["width"]
    with _open_image(record["file_name"], "image") as image:
        width, height = image.size
        # Orientations that exchange height and width.
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def read_label(
    record: Mapping[str, Any], metadata: Any, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Label of a record, mapped as the data set's metadata say.

    Args:
        record: with "render" or "sem_seg_file_name"; a "label_map" of its own stands before the data set's.
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
    if "label_map" in record:
        rule = LabelRule.build(rule.dataset, dict(record["label_map"]), num_classes=rule.num_classes)
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
        size = image_size(record)
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
    with _open_image(path, "label") as image:
        values = np.asarray(image)
        with open(path, "rb") as file:  # byte 24 of a PNG, in its IHDR chunk
            depth = file.read(25)[24] if image.format == "PNG" else 0
        turn, wide = _orientation(image), _is_16_bits(image)
    found = f"{image.format} of mode {image.mode}, {depth} bits"
    hint = "; are its colours classes, or is it the image itself?" if image.mode == "RGB" else ""
    # Pillow stretches the values of 1-, 2- and 4-bit grey images over 0 .. 255.
    if not depth or not (wide or image.mode == "P" or (image.mode == "L" and depth == 8)):
        raise ValueError(
            f"{path}: a label must be a PNG of one 8-bit channel whose pixels are label values (mode L, or P "
            f"with a palette); found {found}{hint}"
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


@dataclass(frozen=True)
class LabelRule:
    """How the labels of one data set are read. Picklable, so that spawned workers need no catalog.

    Args:
        dataset: name, for messages.
        mapping: (raw value, target) for every allowed raw value.
        num_classes: train ids are below it; 2 for anomaly sets.
    """

    dataset: str
    mapping: tuple[tuple[int, int], ...]
    num_classes: int

    @classmethod
    def from_metadata(cls, metadata: Any) -> LabelRule:
        """Rule of a Detectron2 ``Metadata``: the project's own, or any with ``stuff_classes``.

        Without a ``label_map`` raw values are train ids, and ``ignore_label`` (255 if there is none) is
        ignored.

        Raises:
            ValueError: the metadata give neither classes nor a label map, or a label map that cannot be.
        """
        anomaly = metadata.get("evaluator_type") == ANOMALY
        count = 2 if anomaly else len(metadata.get("stuff_classes") or ())
        if not count:
            raise ValueError(
                f"{metadata.name}: its metadata have no stuff_classes, so its labels cannot be read"
            )
        ignored = {metadata.get("ignore_label", IGNORE_LABEL): IGNORE_LABEL}
        label_map = metadata.get("label_map") or dict(enumerate(range(count))) | ignored
        return cls.build(metadata.name, label_map, num_classes=count)

    @classmethod
    def build(cls, dataset: str, label_map: Mapping[int, int], *, num_classes: int) -> LabelRule:
        """Check ``label_map`` and add the ignore label 255 where it is not mapped."""
        if not 0 < num_classes < _REFUSED:
            raise ValueError(f"{dataset}: expected 1 to {_REFUSED - 1} classes, found {num_classes}")
        pairs = {IGNORE_LABEL: IGNORE_LABEL}
        for raw, target in label_map.items():
            if not isinstance(raw, int | np.integer) or not 0 <= raw <= 255:
                raise ValueError(
                    f"{dataset}: label_map has the raw value {raw!r}; expected integers in 0 .. 255"
                )
            if not isinstance(target, int | np.integer) or not (
                0 <= target < num_classes or target == IGNORE_LABEL
            ):
                raise ValueError(
                    f"{dataset}: label_map maps {raw} to {target!r}; expected 0 .. {num_classes - 1} or "
                    f"{IGNORE_LABEL}"
                )
            pairs[int(raw)] = int(target)
        return cls(dataset, tuple(sorted(pairs.items())), num_classes)

    def apply(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Map a label image.

        Args:
            raw: (H, W) uint8, as stored.
            where: the file, for the message.

        Returns:
            (H, W) uint8, a new array.

        Raises:
            ValueError: a value that is not allowed; says which, where and how many pixels.
        """
        values, targets = map(list, zip(*self.mapping, strict=True))
        table = np.full(256, _REFUSED, np.uint8)
        table[values] = targets
        mapped = cv2.LUT(raw, table)
        if (mapped == _REFUSED).any():
            counts = np.bincount(raw.ravel(), minlength=256)
            counts[values] = 0
            bad = ", ".join(f"{value} ({counts[value]} pixels)" for value in np.flatnonzero(counts))
            runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
            allowed = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
            raise ValueError(
                f"{where}: label value {bad} is outside the classes of {self.dataset}; allowed: {allowed}. "
                "Correct the file, or give the value a meaning in the data set's label_map"
            )
        return mapped
