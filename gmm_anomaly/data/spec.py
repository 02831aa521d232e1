"""What a registration says of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .label_rule import ANOMALY, ANOMALY_LABEL_MAP, LabelRule
from .pairing import Record
from .roots import DataRoot, FixedRoot

Layout = Callable[[Path], list[Record]]


class SplitLayout(Protocol):
    """A layout that knows which folders it needs under the root."""

    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, root: Path) -> list[Record]: ...


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that a registration says; nothing on disk is touched until the catalog entry is got.

    Args:
        name: key in Detectron2's catalogs.
        evaluator_type: "closed_set" or "anomaly".
        layout: from the root to the records. Two specs are the same if their layouts compare equal.
        root: None for data that need no files.
        needs: paths under the root without which the layout is not there.
        classes, colors: names and RGB of the train ids; colors may be None.
        label_map: raw label value to train id / {0, 1, 255}; None: identity.
        expected_count: frames of the complete data set; None: any number.
        protocol: metric protocol of the benchmark, see ``gmm_anomaly.metrics``.
        component_track: "anomaly", "obstacle" or None.
        source: what to download, in a sentence.
        companions: roots of other data sets whose files the layout uses, each with what is needed of it.
    """

    name: str
    evaluator_type: str
    layout: Layout
    root: DataRoot | FixedRoot | None
    needs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] | None = None
    label_map: tuple[tuple[int, int], ...] | None = None
    expected_count: int | None = None
    protocol: str = "pooled"
    component_track: str | None = None
    source: str = ""
    companions: tuple[tuple[DataRoot, str], ...] = ()

    def rule(self) -> LabelRule:
        """How labels are read. Raises ValueError for a label map that cannot be."""
        if self.evaluator_type == ANOMALY:
            mapping = dict(self.label_map) if self.label_map is not None else ANOMALY_LABEL_MAP
            return LabelRule.build(self.name, mapping, num_classes=2)
        mapping = dict(self.label_map) if self.label_map is not None else None
        return LabelRule.build(self.name, mapping, num_classes=len(self.classes))

    def hint(self) -> str:
        """What to download and where to put it."""
        if self.root is None:
            return ""
        where = self.root.advice()
        return f"{self.source} Then {where}." if self.source else f"{where[0].upper()}{where[1:]}."
