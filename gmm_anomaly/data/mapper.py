"""From a catalog record to a model's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T

from .augmentation import PadTo, RandomColorJitter, RandomScaledCrop
from .label_rule import LabelRule
from .reading import read_image, read_label, require_format


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
        self.cache_decoded = cache_decoded
        self._decoded: dict[tuple[str, str], tuple[np.ndarray, np.ndarray | None]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments for training on ``DATASETS.TRAIN`` or for evaluation. Raises ValueError for a key's bad
        value."""
        require_format(cfg.INPUT.FORMAT)
        rules = None
        if is_train:
            rules = {name: LabelRule.from_metadata(MetadataCatalog.get(name)) for name in cfg.DATASETS.TRAIN}
        return {
            "image_format": cfg.INPUT.FORMAT,
            "augmentations": train_augmentations(cfg) if is_train else test_augmentations(cfg),
            "label_rules": rules,
            "cache_decoded": cfg.INPUT.CACHE_DECODED and is_train,
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoded": {}}

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One input of the model.

        Args:
            record: of Detectron2's catalog, with "file_name"; "sem_seg_file_name" for training.

        Returns:
            "image" (3, H, W) uint8; "sem_seg" (H, W) int64 with 255 = ignored, if labels are read; "height"
            and "width" of the image as stored; "file_name", and "image_id" if the record has one.

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
            mapped["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
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
    """Scale and crop, colour, flip, pad: colours after the crop, because it is smaller."""
    crop = None
    if cfg.INPUT.CROP.ENABLED:
        if cfg.INPUT.CROP.TYPE != "absolute":
            raise ValueError(f"INPUT.CROP.TYPE: expected 'absolute', found {cfg.INPUT.CROP.TYPE!r}")
        height, width = cfg.INPUT.CROP.SIZE
        crop = (int(height), int(width))
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "vertical", "none"):
        raise ValueError(f"INPUT.RANDOM_FLIP: expected 'horizontal', 'vertical' or 'none', found {flip!r}")
    base = tuple(cfg.INPUT.SCALE_BASE) or None
    scaled_crop = RandomScaledCrop(
        tuple(cfg.INPUT.SCALE_RANGE), crop, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA, base
    )
    augmentations: list[T.Augmentation] = [scaled_crop]
    if cfg.INPUT.COLOR_JITTER:
        augmentations.append(RandomColorJitter(cfg.INPUT.COLOR_JITTER, cfg.INPUT.FORMAT))
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    if crop is not None:
        augmentations.append(PadTo(crop, cfg.MODEL.PIXEL_MEAN))
    return augmentations


def test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The image's own size, or its shorter side resized to ``INPUT.MIN_SIZE_TEST``."""
    if cfg.INPUT.MIN_SIZE_TEST <= 0:
        return []
    return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
