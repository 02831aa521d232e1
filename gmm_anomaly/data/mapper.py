"""From a catalog record to a model's input: reading, the augmentations that Detectron2 lacks, tensors.

All randomness comes from numpy's global generator, which the training stream seeds for every image anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils.logger import log_first_n
from fvcore.transforms.transform import Transform

from gmm_anomaly.values import check_sections

from .outliers import PasteOutliers, separated
from .reading import IGNORE_LABEL, LabelRule, read_image, read_label


class SegmentationMapper:
    """Reads, augments and turns into tensors; picklable, and free of catalogs once built.

    Args:
        image_format: "RGB" or "BGR".
        augmentations: Detectron2 augmentations of image and label. For evaluation they apply to the image
            alone.
        label_rules: by data set name, as in the records' "dataset_name", which may be left out where there is
            one data set; None for evaluation: no label is read.
        cache_decoded: keep decoded images and labels in this process after the first read.
    """

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        augmentations: Sequence[T.Augmentation],
        label_rules: Mapping[str, LabelRule] | None = None,
        cache_decoded: bool = False,
    ) -> None:
        self.image_format = image_format
        self.augmentations = T.AugmentationList(list(augmentations))
        self.label_rules = None if label_rules is None else dict(label_rules)
        self.pastes = any(isinstance(part, PasteOutliers) for part in augmentations)
        self.cache_decoded = cache_decoded
        self._decoded: dict[tuple[str, str], tuple[np.ndarray, np.ndarray | None]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments for training on ``DATASETS.TRAIN`` or for evaluation. Raises ValueError for a key's bad
        value."""
        check_sections(cfg, "INPUT.")
        rules = None
        if is_train:
            rules = {name: LabelRule.from_metadata(MetadataCatalog.get(name)) for name in cfg.DATASETS.TRAIN}
        return {
            "image_format": cfg.INPUT.FORMAT,
            "augmentations": train_augmentations(cfg) if is_train else test_augmentations(cfg),
            "label_rules": rules,
            "cache_decoded": cfg.INPUT.CACHE_DECODED and is_train,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One input of the model.

        Args:
            record: of Detectron2's catalog, with "file_name"; "sem_seg_file_name" for training.

        Returns:
            "image" (3, H, W) uint8; "sem_seg" (H, W) int64 with 255 = ignored, if labels are read;
            "outliers" (H, W) bool, the pasted objects, if there are any (``INPUT.OUTLIERS``); "height" and
            "width" of the image as stored; "file_name", and "image_id" if the record has one.

        Raises:
            FileNotFoundError, ValueError: see ``read_image`` and ``read_label``.
            RuntimeError: anything else that fails, an augmentation for example; names the image.
        """
        try:
            image, label = self._read(record)
            inputs = T.AugInput(image, sem_seg=label)
            self.augmentations(inputs)
        except Exception as error:
            files = (record["file_name"], record.get("sem_seg_file_name", record["file_name"]))
            if any(str(name) in str(error) for name in files):
                raise
            raise RuntimeError(
                f"{record['file_name']} could not be prepared: {type(error).__name__}: {error}"
            ) from error
        mapped: dict[str, Any] = {
            "image": torch.from_numpy(np.array(inputs.image.transpose(2, 0, 1), order="C")),
            "height": image.shape[0],
            "width": image.shape[1],
        }
        if inputs.sem_seg is not None:
            mapped |= separated(torch.from_numpy(inputs.sem_seg.astype(np.int64)), self.pastes)
        return mapped | {key: record[key] for key in ("file_name", "image_id") if key in record}

    def _read(self, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        key = record.get("dataset_name", ""), record["file_name"]
        if key in self._decoded:
            return self._decoded[key]
        image = read_image(record, self.image_format)
        label = None
        if self.label_rules is not None:
            one = len(self.label_rules) == 1
            name = next(iter(self.label_rules)) if one else record["dataset_name"]
            label = read_label(record, self.label_rules[name], size=image.shape[:2])
        if self.cache_decoded:
            self._decoded[key] = image, label
        return image, label


def train_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Scale and crop, objects, colour, flip, pad: colours after the crop, because it is smaller."""
    crop = None
    if cfg.INPUT.CROP.ENABLED:
        if cfg.INPUT.CROP.TYPE != "absolute":
            raise ValueError(f"INPUT.CROP.TYPE: expected 'absolute', found {cfg.INPUT.CROP.TYPE!r}")
        height, width = cfg.INPUT.CROP.SIZE
        crop = (int(height), int(width))
    base = tuple(cfg.INPUT.SCALE_BASE) or None
    scaled_crop = RandomScaledCrop(
        tuple(cfg.INPUT.SCALE_RANGE), crop, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA, base
    )
    augmentations: list[T.Augmentation] = [scaled_crop]
    if cfg.INPUT.OUTLIERS.SHARE:
        augmentations.append(PasteOutliers.from_config(cfg))
    if cfg.INPUT.COLOR_JITTER:
        factors = 1 - cfg.INPUT.COLOR_JITTER, 1 + cfg.INPUT.COLOR_JITTER
        augmentations += [
            kind(*factors) for kind in (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
        ]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return [*augmentations, PadTo(crop, cfg.MODEL.PIXEL_MEAN)] if crop else augmentations


def test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The image's own size, or its shorter side resized to ``INPUT.MIN_SIZE_TEST``."""
    side = cfg.INPUT.MIN_SIZE_TEST
    return [ResizeForTest(side, cfg.INPUT.MAX_SIZE_TEST)] if side > 0 else []


class ResizeForTest(T.ResizeShortestEdge):
    """Detectron2's, which says so, once, where the longer side keeps the shorter one below what was asked
    for."""

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        shorter, longer = min(height, width), max(height, width)
        # With both alike it is the longer side that is chosen.
        wanted = self.short_edge_length[0]
        if wanted < self.max_size and longer * wanted > self.max_size * shorter:
            log_first_n(
                logging.WARNING,
                f"images of {height} x {width} (height x width) are tested with a shorter side of "
                f"{round(shorter * self.max_size / longer)} pixels, not INPUT.MIN_SIZE_TEST "
                f"{wanted}: INPUT.MAX_SIZE_TEST is {self.max_size}",
                key="caller",
            )
        return super().get_transform(image)


class _PixelTransform(Transform):
    """Transform of images and label images alone."""

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} transforms images and label images only")


class WindowResize(_PixelTransform):
    """Cut ``window`` (top, left, height, width; pixels) out and resize it to ``size`` (height, width):
    bilinear for images, nearest for labels, pixel centres aligned."""

    def __init__(self, window: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.window, self.size = window, size

    def apply_image(self, img: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        top, left, height, width = self.window
        cut = img[top : top + height, left : left + width]
        if (height, width) == self.size:
            return cut
        return cv2.resize(cut, self.size[::-1], interpolation=interpolation)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, cv2.INTER_NEAREST_EXACT)


class RandomScaledCrop(T.Augmentation):
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

    def __init__(
        self,
        scale_range: tuple[float, float],
        crop_size: tuple[int, int] | None,
        max_area: float = 1.0,
        base_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.scale_range, self.crop_size = scale_range, crop_size
        self.max_area, self.base_size = max_area, base_size

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(*self.scale_range)
        if self.base_size is not None:
            sides = sorted((height, width))
            scale *= min(base / side for base, side in zip(self.base_size, sides, strict=True))
        limits = self.crop_size or (None, None)
        window_height, size_height = _extent(height, scale, limits[0])
        window_width, size_width = _extent(width, scale, limits[1])
        for _ in range(11):
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


class PadTo(_PixelTransform):
    """Pad at the bottom and the right to ``size`` (height, width): the image with ``color`` (3,), in its
    channel order, the label with 255."""

    def __init__(self, size: tuple[int, int], color: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.color = tuple(float(np.clip(round(value), 0, 255)) for value in color)

    def apply_image(self, img: np.ndarray, value: tuple[float, ...] | None = None) -> np.ndarray:
        bottom, right = (max(0, want - have) for want, have in zip(self.size, img.shape, strict=False))
        return cv2.copyMakeBorder(img, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=value or self.color)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, (IGNORE_LABEL,))
