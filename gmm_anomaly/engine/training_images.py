"""The training set as it is tested: whole images, without augmentation, and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.utils.data import Dataset

from gmm_anomaly.data import SegmentationMapper
from gmm_anomaly.data.build import train_records
from gmm_anomaly.data.mapper import test_augmentations


class TrainingImages(Dataset[dict[str, Any]]):
    """Inputs with ``image`` and ``sem_seg`` of one size, that of ``INPUT.MIN_SIZE_TEST``, for every record of
    ``DATASETS.TRAIN``.

    Raises:
        ValueError, FileNotFoundError: as ``build_train_loader``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.records = [record for part in train_records(cfg).values() for record in part]
        options = SegmentationMapper.from_config(cfg, True) | {"augmentations": test_augmentations(cfg)}
        self.mapper = SegmentationMapper(**options)

    def __len__(self) -> int:
        return len(self.records)

    def evenly_spaced(self, count: int) -> list[int]:
        """This rank's share of at most ``count`` evenly spaced images, by index."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return chosen[comm.get_rank() :: comm.get_world_size()].tolist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        mapped = self.mapper(self.records[index])
        # The size as stored would enlarge a model's outputs beyond its labels again.
        del mapped["height"], mapped["width"]
        return mapped
