"""The records of a data set under evaluation, and what the evaluators share: each image once, all ranks."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from gmm_anomaly.data.checking import warn_of_labels
from gmm_anomaly.data.reading import ANOMALY, CLOSED_SET, has_label, read_image, read_label
from gmm_anomaly.data.registration import get_records

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
Counted = TypeVar("Counted", bound=Any)

# By the kind of evaluation, the values of the metadata's "evaluator_type" that ask for it; "sem_seg" is what
# Detectron2 itself calls a data set with classes.
EVALUATOR_TYPES = {CLOSED_SET: (CLOSED_SET, "sem_seg"), ANOMALY: (ANOMALY,)}


class EvaluatedRecords:
    """Records and labels of one data set, registered by this project's functions or by hand.

    Args:
        dataset_name: a name in Detectron2's catalog.
        kind: what the data set must be: ``"closed_set"`` or ``"anomaly"``.

    Raises:
        ValueError: an unknown name; a data set of the other kind, without images, with withheld labels, or
            whose image ids repeat. FileNotFoundError: its folder is missing.
    """

    def __init__(self, dataset_name: str, kind: str) -> None:
        self.name = dataset_name
        self.records: Sequence[Record] = get_records(dataset_name)
        # Some catalog entries complete their metadata only when they are read.
        self.metadata = MetadataCatalog.get(dataset_name)
        found = self.metadata.get("evaluator_type")
        if found not in EVALUATOR_TYPES[kind]:
            raise ValueError(
                f"{dataset_name}: this evaluator needs a data set of evaluator_type {kind!r}, found {found!r}"
            )
        withheld = len(self.records) - sum(map(has_label, self.records))
        if withheld:
            raise ValueError(
                f"{dataset_name}: the labels of {withheld} of {len(self.records)} images are withheld "
                "by the benchmark, so it cannot be evaluated here. Evaluate its validation split, or write a "
                "submission for it with gmm-anomaly submit"
            )
        self._ids = _image_ids(self.records)
        self._by_id: dict[str, int] = {}
        self._by_file: dict[str, int] = {}
        for index, record in enumerate(self.records):
            self._by_id[self._ids[index]] = self._by_file[str(record["file_name"])] = index
        if len(self._by_id) != len(self.records):
            raise ValueError(
                f"{dataset_name}: image_id must be unique, found {len(self._by_id)} different ones in "
                f"{len(self.records)} records"
            )
        warn_of_labels(dataset_name, self.records)
        self._reader = ThreadPoolExecutor(1, "labels")
        self._ahead: dict[int, Future[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def find(self, item: Mapping[str, Any]) -> int:
        """Position in ``records`` of a model's input, by its ``image_id``, else by its ``file_name``.

        Raises:
            ValueError: it is not there.
        """
        index = self._by_id.get(str(item["image_id"])) if "image_id" in item else None
        if index is None:
            index = self._by_file.get(str(item.get("file_name")))
        if index is None:
            raise ValueError(
                f"{self.name}: an input has image_id {item.get('image_id')!r} (file "
                f"{item.get('file_name')!r}), which is not in the data set; loader and evaluator must be "
                "built for the same one"
            )
        return index

    def image_id(self, index: int) -> str:
        return self._ids[index]

    def label(self, index: int) -> np.ndarray:
        """(H, W) uint8 label of a record, mapped as the metadata say; 255 is ignored.

        The next record's is read meanwhile: a GPU counts a frame sooner than its PNG is decoded.
        """
        found, after = self._ahead.pop(index, None), index + 1
        if after < len(self) and after not in self._ahead:
            self._ahead = {after: self._reader.submit(self._read, after)}
        return self._read(index) if found is None else found.result()

    def _read(self, index: int) -> np.ndarray:
        return read_label(self.records[index], self.metadata)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB image of a record."""
        return read_image(self.records[index], "RGB")


def _image_ids(records: Sequence[Record]) -> list[str]:
    """Ids of the records; where they have none, the paths of their files below the folder they share."""
    try:
        return [str(record["image_id"]) for record in records]
    except KeyError:
        pass
    files = [Path(record["file_name"]).with_suffix("") for record in records]
    shared = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(shared).as_posix().replace("/", "__") for path in files]


class RecordEvaluator(DatasetEvaluator):
    """An evaluator of Detectron2 that finds the ground truth of each image in the catalog.

    Over several ranks each evaluates its own images; whole-number counts are gathered, so the results are
    those of one process to the last bit.

    Args:
        dataset_name, kind: as for :class:`EvaluatedRecords`.
        distributed: merge over the ranks; otherwise each process is its own world.
        output_dir: folder for files; None for none.
        num_visualizations: how many of the first images of the data set are drawn.
    """

    def __init__(
        self,
        dataset_name: str,
        kind: str,
        distributed: bool,
        output_dir: str | Path | None,
        num_visualizations: int,
    ) -> None:
        self.records = EvaluatedRecords(dataset_name, kind)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.distributed = distributed and comm.get_world_size() > 1
        self.is_main = not self.distributed or comm.is_main_process()
        self._drawn = range(min(num_visualizations, len(self.records)))

    def reset(self) -> None:
        self._seen: set[int] = set()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch.

        Args:
            inputs: dicts with ``image_id`` or ``file_name``, as the loaders of this project and of Detectron2
                give them.
            outputs: what the model gives for them.

        Raises:
            ValueError: an image that is not in the data set or was given before, or an output that cannot be
                compared with its label.
        """
        for item, output in zip(inputs, outputs, strict=True):
            index = self.records.find(item)
            where = f"{self.records.name}, image {self.records.image_id(index)!r}"
            if index in self._seen:
                raise ValueError(f"{where} was given twice; call reset() before another round")
            self._count(index, output, where)
            self._seen.add(index)

    def _count(self, index: int, output: Mapping[str, Any], where: str) -> None:
        """Count the image of a record; ``where`` names it in errors."""
        raise NotImplementedError

    def _share(self, value: Any) -> list[Any]:
        """``value`` of every rank, in order of rank, on every rank."""
        return comm.all_gather(value) if self.distributed else [value]

    def _merged(self, metric: Counted) -> Counted | None:
        """What all ranks counted, on rank 0; None elsewhere."""
        if not self.distributed:
            return metric
        for other in comm.gather(metric)[1:]:
            metric.merge(other)
        return metric if self.is_main else None

    def _check_coverage(self) -> None:
        """Compare the images that were evaluated with the data set; every rank must call.

        Raises:
            ValueError (on every rank): no image was evaluated, or one by several ranks, as samplers do that
                pad their shards; both would falsify the numbers.
        """
        records = self.records
        seen: set[int] = set()
        repeated: set[int] = set()
        for shard in self._share(self._seen):
            repeated |= seen & shard
            seen |= shard
        if repeated:
            raise ValueError(
                f"{records.name}: {len(repeated)} images were evaluated by more than one process, the first "
                f"is {records.image_id(min(repeated))!r}; use a sampler that does not repeat images "
                "(detectron2.data.samplers.InferenceSampler)"
            )
        if not seen:
            raise ValueError(f"{records.name}: no image was evaluated; the loader gave none")
        missing = set(range(len(records))) - seen
        if missing and self.is_main:
            logger.warning(
                "%s: only %d of %d images were evaluated; the first that is missing is %r",
                *(records.name, len(seen), len(records), records.image_id(min(missing))),
            )
