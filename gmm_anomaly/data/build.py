"""Data loaders for training and evaluation, by config."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler

from .class_index import class_pixel_counts
from .label_rule import ANOMALY, CLOSED_SET, LabelRule
from .loader import InputLoader
from .mapper import SegmentationMapper
from .pairing import Record
from .registration import get_records, require_known
from .sampler import ClassBalancedSampler
from .stream import TrainingStream

logger = logging.getLogger(__name__)

SAMPLERS = ("TrainingSampler", "ClassBalancedSampler")


def build_train_loader(cfg: CfgNode, *, seed: int | None = None) -> InputLoader:
    """Endless loader of lists of training inputs over all of ``DATASETS.TRAIN``; its ``dataset`` is a
    :class:`TrainingStream`.

    Args:
        seed: of the images' order and augmentation; None: ``SEED``, or a random one if that is negative.

    Raises:
        ValueError: a data set is unknown, empty or without labels, or a key has a bad value.
        FileNotFoundError: a data set is not on disk; says what to download and where to put it.
    """
    ranks = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % ranks:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH: expected a positive multiple of the {ranks} processes, found "
            f"{cfg.SOLVER.IMS_PER_BATCH}"
        )
    by_name = train_records(cfg)
    stream = TrainingStream(
        [record for records in by_name.values() for record in records],
        SegmentationMapper(cfg, True),
        _sampler_maker(cfg, by_name),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // ranks,
        seed=run_seed(cfg) if seed is None else seed,
        # Crops have one size.
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING and not cfg.INPUT.CROP.ENABLED,
    )
    # The stream's items are batches.
    return InputLoader(
        stream,
        batch_size=None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def run_seed(cfg: CfgNode) -> int:
    """``SEED``, or a random one that the ranks agree on if that is negative. Collective."""
    return int(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())


def train_records(cfg: CfgNode) -> dict[str, list[Record]]:
    """Records of each data set in ``DATASETS.TRAIN``, each with its "dataset_name". Errors as
    ``build_train_loader``."""
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN: expected at least one data set, found none")
    by_name = {}
    for name in cfg.DATASETS.TRAIN:
        records = get_records(name)
        for record in records:
            if "sem_seg_file_name" not in record and "render" not in record:
                raise ValueError(
                    f"DATASETS.TRAIN: {name} has images without labels, for example {record['file_name']}; "
                    "train on a split whose labels are public"
                )
        by_name[name] = [record | {"dataset_name": name} for record in records]
    return by_name


def _sampler_maker(cfg: CfgNode, by_name: dict[str, list[Record]]) -> Callable[[int], Sampler]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return partial(TrainingSampler, sum(map(len, by_name.values())), True)
    if name != "ClassBalancedSampler":
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN: expected one of {', '.join(SAMPLERS)}, found {name!r}")
    folder = cfg.DATALOADER.CLASS_INDEX_DIR or cfg.OUTPUT_DIR
    counts = [
        class_pixel_counts(dataset, records, LabelRule.from_metadata(MetadataCatalog.get(dataset)), folder)
        for dataset, records in by_name.items()
    ]
    together = np.concatenate(counts)
    classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
    absent = [classes[index] for index in np.flatnonzero(together.sum(axis=0) == 0)]
    if absent:
        logger.warning("no image of %s has the classes %s", ", ".join(by_name), ", ".join(absent))
    return partial(ClassBalancedSampler, together)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> InputLoader:
    """Loader of one-element lists, every image of the data set once over all ranks; labels are not read.

    Raises:
        ValueError: the data set is unknown or empty. FileNotFoundError: it is not on disk.
    """
    records = get_records(dataset_name)
    return InputLoader(
        MapDataset(DatasetFromList(records, copy=False), SegmentationMapper(cfg, False)),
        sampler=InferenceSampler(len(records)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def check_num_classes(cfg: CfgNode) -> None:
    """Raise ValueError unless ``MODEL.CLASSIFIER.NUM_CLASSES`` is that of every closed set named in
    ``DATASETS``.

    Also refused: an unknown name, training on an anomaly set, training sets with different classes. Touches
        no files.
    """
    expected = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    first: list[str] | None = None
    for key, names in (("DATASETS.TRAIN", cfg.DATASETS.TRAIN), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        for name in names:
            try:
                require_known(name)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
            metadata = MetadataCatalog.get(name)
            kind = metadata.get("evaluator_type")
            if key == "DATASETS.TRAIN" and kind == ANOMALY:
                raise ValueError(f"{key}: {name} is an anomaly set, it has no classes to train on")
            if key == "DATASETS.TEST" and kind != CLOSED_SET:
                continue
            classes = list(metadata.get("stuff_classes") or ())
            if len(classes) != expected:
                raise ValueError(
                    f"{key}: {name} has {len(classes)} classes, MODEL.CLASSIFIER.NUM_CLASSES is "
                    f"{expected}; set it to {len(classes)}"
                )
            if key == "DATASETS.TRAIN":
                first = first or classes
                if classes != first:
                    raise ValueError(
                        f"{key}: {cfg.DATASETS.TRAIN[0]} and {name} have different classes "
                        f"({', '.join(first)}; {', '.join(classes)}); they cannot be trained on together"
                    )
