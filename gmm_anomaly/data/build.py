"""Data loaders for training and evaluation, by config."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.build import trivial_batch_collator
from detectron2.data.catalog import Metadata
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from gmm_anomaly.values import check_sections

from .checking import label_counts, warn_of_labels
from .mapper import SegmentationMapper
from .pairing import MissingDataError, Record
from .reading import ANOMALY, CLOSED_SET, LabelRule, has_label
from .registration import get_records, require_known
from .stream import ClassBalancedSampler, TrainingStream

logger = logging.getLogger(__name__)

# Seconds that a worker goes on after SIGTERM, for the process that it works for to finish its step.
GRACE = 30


class InputLoader(DataLoader[Any]):
    """torch's loader with workers that survive Ctrl-C; its iterators draw nothing from the global generators.

    Raises:
        RuntimeError: while iterating, a worker was killed or ended: says what usually does that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args,
            collate_fn=trivial_batch_collator,
            # Images then travel to a GPU while it computes.
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_keep_working,
            # torch draws a seed for the workers from it, though every input has one of its own here.
            generator=torch.Generator().manual_seed(0),
            **kwargs,
        )

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        with lost_workers_explained():
            try:
                yield from batches
            except (ConnectionError, EOFError) as error:
                # It died while it handed a tensor over, before torch noticed.
                raise RuntimeError(f"DataLoader worker is gone ({type(error).__name__})") from error
            finally:
                # An error's traceback keeps the iterator: its workers would be waited for in vain at the end.
                if self.num_workers:
                    batches._shutdown_workers()


def _keep_working(_worker: int) -> None:
    """A terminal sends Ctrl-C, and a cluster SIGTERM, to workers too, while their inputs are still needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


@contextmanager
def lost_workers_explained() -> Iterator[None]:
    """Turn torch's error about a worker that died, raised anywhere inside, into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader worker") or "SOLVER.IMS_PER_BATCH" in text:
            raise
        raise RuntimeError(
            f"{text.strip().rstrip('.')}. It was ended from outside: an input that makes it fail would be "
            "named here. Most often the system ran out of memory (see dmesg): lower DATALOADER.NUM_WORKERS "
            "or SOLVER.IMS_PER_BATCH, or set INPUT.CACHE_DECODED False; in a container give it more shared "
            "memory (docker run --shm-size). Checkpoints are intact, continue with --resume"
        ) from error


def build_train_loader(cfg: CfgNode, *, seed: int | None = None) -> InputLoader:
    """Endless loader of lists of training inputs over all of ``DATASETS.TRAIN``; its ``dataset`` is a
    :class:`TrainingStream`.

    Args:
        seed: of the images' order and augmentation; None: ``SEED``, or a random one if that is negative.

    Raises:
        ValueError: a data set is unknown, empty or without labels, or a key has a bad value.
        FileNotFoundError: a data set is not on disk; says what to download and where to put it.
    """
    check_sections(cfg, "DATALOADER.", "SOLVER.IMS_PER_BATCH")
    ranks = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % ranks:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH: expected a multiple of the {ranks} processes, found "
            f"{cfg.SOLVER.IMS_PER_BATCH}"
        )
    by_name = train_records(cfg)
    for name, records in by_name.items():
        warn_of_labels(name, records)
    stream = TrainingStream(
        [record for records in by_name.values() for record in records],
        SegmentationMapper(cfg, True),
        _sampler_maker(cfg, by_name),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // ranks,
        seed=run_seed(cfg) if seed is None else seed,
    )
    # The stream's items are batches.
    return InputLoader(stream, batch_size=None, num_workers=cfg.DATALOADER.NUM_WORKERS)


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
    for name in present(cfg.DATASETS.TRAIN, "DATASETS.TRAIN"):
        by_name[name] = [record | {"dataset_name": name} for record in get_records(name)]
        without = next((record for record in by_name[name] if not has_label(record)), None)
        if without:
            raise ValueError(
                f"DATASETS.TRAIN: {name} has images without labels, for example {without['file_name']}; "
                "train on a split whose labels are public"
            )
    return by_name


def present(names: Sequence[str], key: str) -> list[str]:
    """Those of several data sets that are on disk; each other one is a line in the log.

    Args:
        key: config key that names them, for the line.

    Raises:
        FileNotFoundError: none is, with the folder of the first. Others as ``get_records``.
    """
    found, absent = [], []
    for name in names:
        try:
            get_records(name)
            found.append(name)
        except MissingDataError as error:
            absent.append(error)
    if absent and not found:
        raise absent[0]
    for error in absent:
        logger.warning("%s: left out: %s", key, error)
    return found


def _sampler_maker(cfg: CfgNode, by_name: dict[str, list[Record]]) -> Callable[[int], Sampler]:
    if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        return partial(TrainingSampler, sum(map(len, by_name.values())), True)
    metadata = [MetadataCatalog.get(dataset) for dataset in by_name]
    rules = map(LabelRule.from_metadata, metadata)
    parts = zip(by_name.values(), rules, strict=True)
    counts = np.concatenate([class_pixel_counts(*part) for part in parts])
    absent = [metadata[0].stuff_classes[index] for index in np.flatnonzero(counts.sum(axis=0) == 0)]
    if absent:
        logger.warning("no image of %s has the classes %s", ", ".join(by_name), ", ".join(absent))
    return partial(ClassBalancedSampler, counts)


def class_pixel_counts(records: Sequence[Record], rule: LabelRule) -> np.ndarray:
    """(N, C) int64 pixel counts per record and class; rank 0 counts them, the other ranks receive them.
    Errors as ``read_label``."""

    def count(record: Record) -> np.ndarray:
        return label_counts(record, rule)[: rule.num_classes]

    counts = None
    if comm.is_main_process():
        title = f"classes of {rule.dataset}"
        counts = np.stack(thread_map(count, records, tqdm_class=tqdm, desc=title, unit="label"))
    return comm.all_gather(counts)[0]


def closed_set(cfg: CfgNode) -> Metadata | None:
    """Metadata of the first data set with classes in ``DATASETS``, or None."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") in (CLOSED_SET, "sem_seg"):
            return metadata
    return None


def class_difference(first: Sequence[str], second: Sequence[str]) -> str | None:
    """In what two lists of classes differ, "order" or "names", or None: spelling does not count (capitals,
    spaces, hyphens, underscores)."""
    one, other = list(map(_plain, first)), list(map(_plain, second))
    if one == other:
        return None
    return "order" if sorted(one) == sorted(other) else "names"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).casefold()


def check_num_classes(cfg: CfgNode) -> None:
    """Raise ValueError unless ``MODEL.CLASSIFIER.NUM_CLASSES`` is that of every closed set named in
    ``DATASETS``, and all of these have the same classes in the same order.

    Also refused: an unknown name, training on an anomaly set. Touches no files.
    """
    expected = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    first: tuple[str, list[str]] | None = None
    for key, names in (("DATASETS.TRAIN", cfg.DATASETS.TRAIN), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        training = key == "DATASETS.TRAIN"
        for name in names:
            try:
                require_known(name)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
            metadata = MetadataCatalog.get(name)
            if training and metadata.get("evaluator_type") == ANOMALY:
                raise ValueError(f"{key}: {name} is an anomaly set, it has no classes to train on")
            if not training and metadata.get("evaluator_type") not in (CLOSED_SET, "sem_seg"):
                continue
            classes = list(metadata.get("stuff_classes") or ())
            if len(classes) != expected:
                raise ValueError(
                    f"{key}: {name} has {len(classes)} classes, MODEL.CLASSIFIER.NUM_CLASSES is "
                    f"{expected}; set it to {len(classes)}"
                )
            first = first or (name, classes)
            if differ := class_difference(first[1], classes):
                what = "the classes in another order" if differ == "order" else "different classes"
                raise ValueError(
                    f"{key}: {first[0]} and {name} have {what} ({', '.join(first[1])}; "
                    f"{', '.join(classes)}); register one with the classes of the other, in their order "
                    "(label_map translates the labels)"
                )
