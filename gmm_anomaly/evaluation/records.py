"""The records of a data set under evaluation, found by what a model's input says of its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from gmm_anomaly.data.reading import read_image, read_label
from gmm_anomaly.data.registration import get_records

Record = Mapping[str, Any]


def has_label(record: Record) -> bool:
    """Whether the label of a record can be read: it names a file, or is rendered."""
    return "sem_seg_file_name" in record or "render" in record


class EvaluatedRecords:
    """Records and labels of one data set.

    Args:
        dataset_name: a name in Detectron2's catalog.
        evaluator_type: what the data set's metadata must say: ``"closed_set"`` or ``"anomaly"``.

    Raises:
        ValueError: an unknown name; a data set of the other type, without images, with withheld labels, or
            whose image ids repeat. FileNotFoundError: its folder is missing.
    """

    def __init__(self, dataset_name: str, evaluator_type: str) -> None:
        self.name = dataset_name
        self.records: list[Record] = get_records(dataset_name)
        # Some catalog entries complete their metadata only when they are read.
        self.metadata = MetadataCatalog.get(dataset_name)
        found = self.metadata.get("evaluator_type")
        if found != evaluator_type:
            raise ValueError(
                f"{dataset_name}: this evaluator needs a data set of evaluator_type {evaluator_type!r}, "
                f"found {found!r}"
            )
        if not self.records:
            raise ValueError(
                f"{dataset_name}: the data set has no image; tools/check_datasets.py says what is missing"
            )
        withheld = [record for record in self.records if not has_label(record)]
        if withheld:
            raise ValueError(
                f"{dataset_name}: the labels of {len(withheld)} of {len(self.records)} images are withheld "
                "by the benchmark, so it cannot be evaluated here. Evaluate its validation split, or write a "
                "submission for it with tools/submit_smiyc.py"
            )
        self._index = {str(record["image_id"]): index for index, record in enumerate(self.records)}
        if len(self._index) != len(self.records):
            raise ValueError(
                f"{dataset_name}: image_id must be unique, found {len(self._index)} different ones in "
                f"{len(self.records)} records"
            )

    def __len__(self) -> int:
        return len(self.records)

    def find(self, item: Mapping[str, Any]) -> int:
        """Position in ``records`` of a model's input, by ``image_id``. ValueError if it is not there."""
        image_id = item.get("image_id")
        index = self._index.get(str(image_id))
        if index is None:
            raise ValueError(
                f"{self.name}: an input has image_id {image_id!r} (file {item.get('file_name')!r}), which is "
                "not in the data set; loader and the evaluator must be built for the same one"
            )
        return index

    def image_id(self, index: int) -> str:
        return str(self.records[index]["image_id"])

    def label(self, index: int) -> np.ndarray:
        """(H, W) uint8 label of a record, mapped as the metadata say."""
        return read_label(self.records[index], self.metadata)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB image of a record."""
        return read_image(self.records[index], "RGB")
