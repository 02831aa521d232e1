"""A few labelled images on which a training looks at itself, always the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.data import SegmentationMapper
from gmm_anomaly.data.build import train_records
from gmm_anomaly.data.mapper import test_augmentations
from gmm_anomaly.data.reading import CLOSED_SET, LabelRule
from gmm_anomaly.data.registration import get_records

# Larger images are reduced to so many pixels: 512 x 1024.
MAX_PIXELS = 1 << 19


class ProbeImages(NamedTuple):
    """Labelled images of one data set.

    Attributes:
        items: dicts with ``image`` (3, H, W) uint8 and ``sem_seg`` (H, W) int64, 255 ignored.
        dataset: its name. held_out: whether it is none of the training sets.
    """

    items: list[dict[str, Tensor]]
    dataset: str
    held_out: bool


def probe_images(cfg: CfgNode, count: int) -> ProbeImages:
    """At most ``count`` evenly spaced images of the first closed set with labels in ``DATASETS.TEST``, or of
    the first training set where there is none, without augmentation, at the size they are tested at.

    Raises:
        ValueError, FileNotFoundError: as ``build_test_loader`` and ``build_train_loader``.
    """
    for name in cfg.DATASETS.TEST:
        if MetadataCatalog.get(name).get("evaluator_type") != CLOSED_SET:
            continue
        records = get_records(name)
        if all("sem_seg_file_name" in record or "render" in record for record in records):
            break
    else:
        name, records = next(iter(train_records(cfg).items()))
    chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    mapper = SegmentationMapper(
        image_format=cfg.INPUT.FORMAT,
        augmentations=test_augmentations(cfg),
        label_rules={name: LabelRule.from_metadata(MetadataCatalog.get(name))},
    )
    items = read_reduced(mapper, (records[index] | {"dataset_name": name} for index in chosen))
    return ProbeImages(items, name, name not in cfg.DATASETS.TRAIN)


def read_reduced(
    mapper: SegmentationMapper, records: Iterable[Mapping[str, Any]], max_pixels: int = MAX_PIXELS
) -> list[dict[str, Tensor]]:
    """Inputs of records, reduced to at most about ``max_pixels`` pixels each, labels by nearest sampling."""
    items = []
    for record in records:
        mapped = mapper(record)
        image, label = mapped["image"], mapped["sem_seg"]
        factor = (max_pixels / label.numel()) ** 0.5
        if factor < 1:
            size = [max(1, round(side * factor)) for side in label.shape]
            small = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
            image = small.round().clamp(0, 255).to(torch.uint8)
            label = F.interpolate(label[None, None].float(), size, mode="nearest")[0, 0].long()
        items.append({"image": image, "sem_seg": label})
    return items
