"""From the values of a label file to train ids (closed set) or {0, 1, 255} (anomaly sets)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

IGNORE_LABEL = 255
CLOSED_SET = "closed_set"
ANOMALY = "anomaly"
# What an anomaly set's label image means unless its label_map says otherwise.
ANOMALY_LABEL_MAP = {0: 0, 1: 1, 255: 255}

# Stands for "not allowed" in the look-up table, so that one comparison finds it; no class may have this id.
_REFUSED = 254


def one_based(num_classes: int) -> tuple[tuple[int, int], ...]:
    """Label map of files that keep 0 for unlabelled pixels: 1 .. ``num_classes`` are the classes."""
    return ((0, IGNORE_LABEL), *((value, value - 1) for value in range(1, num_classes + 1)))


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
        """Rule of a Detectron2 ``Metadata`` with ``evaluator_type``, ``stuff_classes`` and ``label_map``.

        Raises:
            ValueError: the metadata give neither classes nor a label map.
        """
        label_map = metadata.get("label_map")
        if metadata.get("evaluator_type") == ANOMALY:
            return cls.build(metadata.name, label_map or ANOMALY_LABEL_MAP, num_classes=2)
        classes = metadata.get("stuff_classes")
        if not classes:
            raise ValueError(
                f"{metadata.name}: its metadata have no stuff_classes, so its labels cannot be read"
            )
        return cls.build(metadata.name, label_map, num_classes=len(classes))

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
        table = np.full(256, _REFUSED, np.uint8)
        for value, target in self.mapping:
            table[value] = target
        mapped = cv2.LUT(raw, table)
        if (mapped == _REFUSED).any():
            counts = np.bincount(raw.ravel(), minlength=256)
            counts[[value for value, _ in self.mapping]] = 0
            bad = ", ".join(f"{value} ({counts[value]} pixels)" for value in np.flatnonzero(counts))
            allowed = ranges([value for value, _ in self.mapping])
            raise ValueError(
                f"{where}: label value {bad} is outside the classes of {self.dataset}; allowed: {allowed}. "
                "Correct the file, or give the value a meaning in the data set's label_map"
            )
        return mapped


def ranges(values: Sequence[int]) -> str:
    """Sorted integers as text, runs shortened: "0-10, 255"."""
    parts: list[str] = []
    start = previous = None
    for value in [*values, None]:
        if start is not None and (value is None or value != previous + 1):
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = None
        if start is None:
            start = value
        previous = value
    return ", ".join(parts)
