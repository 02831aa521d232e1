"""From the values of a label file to train ids (closed set) or {0, 1, 255} (anomaly sets)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

IGNORE_LABEL = 255
CLOSED_SET = "closed_set"
ANOMALY = "anomaly"

# What an anomaly set's label image means unless its label_map says otherwise.
_ANOMALY_LABEL_MAP = {0: 0, 1: 1}
# Stands for "not allowed" in the look-up table, so that one comparison finds it; no class may have this id.
_REFUSED = 254


def is_closed_set(metadata: Any) -> bool:
    """Whether a Detectron2 ``Metadata`` is of a data set with classes: its ``evaluator_type`` is "closed_set"
    or Detectron2's "sem_seg"."""
    return metadata.get("evaluator_type") in (CLOSED_SET, "sem_seg")


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
        label_map = metadata.get("label_map")
        ignored = {metadata.get("ignore_label", IGNORE_LABEL): IGNORE_LABEL}
        if metadata.get("evaluator_type") == ANOMALY:
            return cls.build(metadata.name, label_map or _ANOMALY_LABEL_MAP | ignored, num_classes=2)
        count = len(metadata.get("stuff_classes") or ())
        if not count:
            raise ValueError(
                f"{metadata.name}: its metadata have no stuff_classes, so its labels cannot be read"
            )
        identity = {value: value for value in range(count)}
        return cls.build(metadata.name, label_map or identity | ignored, num_classes=count)

    @classmethod
    def build(cls, dataset: str, label_map: Mapping[int, int] | None, *, num_classes: int) -> LabelRule:
        """Check ``label_map`` (None: identity) and add the ignore label 255 where it is not mapped."""
        if not 0 < num_classes < _REFUSED:
            raise ValueError(f"{dataset}: expected 1 to {_REFUSED - 1} classes, found {num_classes}")
        if label_map is None:
            label_map = {value: value for value in range(num_classes)}
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
        pairs = {IGNORE_LABEL: IGNORE_LABEL} | {int(raw): int(target) for raw, target in label_map.items()}
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
        values = [value for value, _ in self.mapping]
        table = np.full(256, _REFUSED, np.uint8)
        table[values] = [target for _, target in self.mapping]
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
