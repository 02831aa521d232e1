"""Entering data sets into Detectron2's catalogs, and listing their frames when an entry is got."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from .errors import LayoutError, MissingDataError
from .label_rule import IGNORE_LABEL
from .links import require_inside
from .pairing import Record
from .spec import DatasetSpec, SplitLayout

_SPECS: dict[str, DatasetSpec] = {}


def register(spec: DatasetSpec, *, overwrite: bool = False) -> None:
    """Enter a data set into Detectron2's ``DatasetCatalog`` and ``MetadataCatalog``.

    The same registration twice is no error.

    Raises:
        ValueError: the name is taken by another data set and ``overwrite`` is False, or the spec contradicts
            itself.
    """
    spec.rule()
    if spec.colors is not None and len(spec.colors) != len(spec.classes):
        raise ValueError(f"{spec.name}: {len(spec.classes)} classes, but {len(spec.colors)} colors")
    if _SPECS.get(spec.name) == spec and spec.name in DatasetCatalog:
        return
    if spec.name in DatasetCatalog:
        if not overwrite:
            raise ValueError(
                f"a data set named {spec.name!r} is registered already, with other arguments; choose "
                "another name or pass overwrite=True"
            )
        DatasetCatalog.remove(spec.name)
    # Metadata refuse to change a value, so they start anew.
    if spec.name in MetadataCatalog:
        MetadataCatalog.remove(spec.name)
    _SPECS[spec.name] = spec
    DatasetCatalog.register(spec.name, lambda: load_records(spec))
    MetadataCatalog.get(spec.name).set(**_metadata(spec))


def register_splits(name: str, splits: Iterable[tuple[str, SplitLayout, int]], **shared: Any) -> None:
    """Register the splits of a data set as ``name_split``.

    Args:
        splits: name, layout and number of frames of each.
        shared: what else their specs say.
    """
    for split, layout, count in splits:
        register(
            DatasetSpec(
                name=f"{name}_{split}", layout=layout, needs=layout.needs(), expected_count=count, **shared
            )
        )


def _metadata(spec: DatasetSpec) -> dict[str, Any]:
    values: dict[str, Any] = {
        "evaluator_type": spec.evaluator_type,
        "ignore_label": IGNORE_LABEL,
        "label_map": None if spec.label_map is None else dict(spec.label_map),
        "root": None if spec.root is None else str(spec.root.path()),
        "expected_count": spec.expected_count,
        "protocol": spec.protocol,
        "component_track": spec.component_track,
        "hint": spec.hint(),
    }
    if spec.classes:
        values["stuff_classes"] = list(spec.classes)
    if spec.colors is not None:
        values["stuff_colors"] = [list(color) for color in spec.colors]
    return values


def load_records(spec: DatasetSpec, *, warn: bool = True) -> list[Record]:
    """List the frames of a data set; opens no image.

    Args:
        warn: log a warning, once, if the number of frames is not the expected one.

    Raises:
        MissingDataError: there is no root folder; says what to download and where to put it.
        LayoutError: the folder lacks something, an image has no label (or the reverse), there are no images,
            or a link leads out of the data (see ``require_inside``).
    """
    root = Path() if spec.root is None else spec.root.path()
    if spec.root is not None:
        # The environment may have changed since the registration.
        vars(MetadataCatalog.get(spec.name))["root"] = str(root)
        if not root.is_dir():
            raise MissingDataError(f"{spec.name}: there is no folder {root}. {spec.hint()}")
        absent = [path for path in spec.needs if not (root / path).exists()]
        if absent:
            raise LayoutError(
                f"{spec.name}: {root} lacks {', '.join(absent)}; the data set needs "
                f"{', '.join(spec.needs)} there. {spec.hint()}"
            )
    for other, what in spec.companions:
        if not other.path().is_dir():
            raise MissingDataError(
                f"{spec.name}: it needs {what}, but there is no folder {other.path()}; {other.advice()}"
            )
    try:
        records = spec.layout(root)
        # A user's own function names files as it likes.
        if spec.root is not None and getattr(spec.layout, "pair_files", None) is None:
            labels = getattr(spec.layout, "label_root", None)
            others = [other.path() for other, _ in spec.companions]
            require_inside(records, [root, *others, *([Path(labels).expanduser()] if labels else [])])
    except LayoutError as error:
        raise LayoutError(f"{spec.name}: {error}") from None
    if not records:
        raise LayoutError(f"{spec.name}: no images in {root}. {spec.hint()}")
    ids = {record["image_id"] for record in records}
    if len(ids) != len(records):
        raise LayoutError(f"{spec.name}: {len(records)} frames, but only {len(ids)} different names")
    if warn and spec.expected_count not in (None, len(records)):
        log_first_n(
            logging.WARNING,
            f"{spec.name}: {len(records)} of {spec.expected_count} frames in {root}; its numbers are not the "
            "benchmark's",
            key="message",
        )
    return records


def registered_specs() -> dict[str, DatasetSpec]:
    """Specs of the data sets that this project registered, by name, in the order of registration."""
    return dict(_SPECS)


def get_records(name: str) -> list[Record]:
    """Records of a registered data set, in Detectron2's format.

    Raises:
        ValueError: no data set of this name (lists the known ones). Others as ``load_records``.
    """
    require_known(name)
    return DatasetCatalog.get(name)


def require_known(name: str) -> None:
    """Raise ValueError, with the names there are, unless ``name`` is a registered data set."""
    if name in DatasetCatalog:
        return
    close = difflib.get_close_matches(name, list(DatasetCatalog), n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown data set {name!r}.{guess} Known data sets: {', '.join(_SPECS)}")
