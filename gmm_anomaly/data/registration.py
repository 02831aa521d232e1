"""Entering data sets, the project's and a user's own, into Detectron2's catalogs."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.logger import log_first_n

from gmm_anomaly.metrics import PROTOCOLS

from .pairing import DataRoot, LayoutError, MissingDataError, OwnFolders, PairFiles, Record
from .reading import ANOMALY, CLOSED_SET, IGNORE_LABEL, LabelRule


@dataclass(frozen=True)
class DatasetSpec:
    """What a registration says; nothing on disk is touched until the catalog entry is got.

    Args:
        name: key in Detectron2's catalogs.
        evaluator_type: "closed_set" or "anomaly".
        layout: from the root to the records. Two specs are the same if their layouts compare equal.
        root: None for data that need no files. classes, colors: names of the train ids, and RGB or None.
        label_map: (raw label value, train id or {0, 1, 255}); None: identity.
        expected_count: frames of the complete data set; None: any number.
        protocol: metric protocol of the benchmark, see ``gmm_anomaly.metrics``.
        component_track: object sizes of the component metrics: "anomaly", "obstacle" or None.
        source: what to download, in a sentence.
    """

    name: str
    evaluator_type: str
    layout: Callable[[Path], list[Record]]
    root: DataRoot | None
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, ...], ...] | None = None
    label_map: tuple[tuple[int, int], ...] | None = None
    expected_count: int | None = None
    protocol: str = "pooled"
    component_track: str | None = None
    source: str = ""

    def metadata(self) -> dict[str, Any]:
        """What Detectron2's ``MetadataCatalog`` says of the data set."""
        values: dict[str, Any] = {
            "evaluator_type": self.evaluator_type,
            "expected_count": self.expected_count,
            "protocol": self.protocol,
            "component_track": self.component_track,
            "ignore_label": IGNORE_LABEL,
            "label_map": None if self.label_map is None else dict(self.label_map),
        }
        if self.classes:
            values["stuff_classes"] = list(self.classes)
        if self.colors is not None:
            values["stuff_colors"] = [list(map(int, color)) for color in self.colors]
        return values

    def rule(self) -> LabelRule:
        """How labels are read. Raises ValueError for a label map that cannot be."""
        return LabelRule.from_metadata(Metadata(name=self.name, **self.metadata()))

    def hint(self) -> str:
        """What to download and where to put it."""
        if self.root is None:
            return ""
        where = self.root.advice()
        return f"{self.source} Then {where}." if self.source else f"{where[0].upper()}{where[1:]}."


_SPECS: dict[str, DatasetSpec] = {}


def register(spec: DatasetSpec, *, overwrite: bool = False) -> None:
    """Enter a data set into Detectron2's ``DatasetCatalog`` and ``MetadataCatalog``.

    The same registration twice is no error.

    Raises:
        ValueError: the name is taken by another data set (without ``overwrite``), or the spec cannot be.
    """
    _check_classes(spec)
    spec.rule()
    if _SPECS.get(spec.name) == spec and spec.name in DatasetCatalog:
        return
    if spec.name in DatasetCatalog:
        if not overwrite:
            raise ValueError(f"{spec.name!r} is registered already, otherwise; overwrite=True replaces it")
        DatasetCatalog.remove(spec.name)
    # Metadata refuse to change a value, so they start anew.
    if spec.name in MetadataCatalog:
        MetadataCatalog.remove(spec.name)
    _SPECS[spec.name] = spec
    DatasetCatalog.register(spec.name, partial(load_records, spec))
    MetadataCatalog.get(spec.name).set(**spec.metadata())


def _check_classes(spec: DatasetSpec) -> None:
    classes, colors = spec.classes, spec.colors
    for name in classes:
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(f"{spec.name}: classes: expected names, without blanks around, found {name!r}")
        if classes.count(name) > 1:
            raise ValueError(f"{spec.name}: classes: expected each name once, found {name} again")
    if len(classes) != len(classes if colors is None else colors):
        raise ValueError(f"{spec.name}: {len(classes)} classes, but {len(colors or ())} colors")
    for color in colors or ():
        if len(color) != 3 or not all(isinstance(part, Integral) and 0 <= part <= 255 for part in color):
            raise ValueError(f"{spec.name}: colors: expected whole (R, G, B) from 0 to 255, found {color}")


def load_records(spec: DatasetSpec) -> list[Record]:
    """List the frames of a data set; opens no image.

    Raises:
        MissingDataError: there is no root folder; says what to download and where to put it.
        LayoutError: the folder lacks something, an image has no label (or the reverse), or none is there.
    """
    root = Path() if spec.root is None else spec.root.path()
    try:
        if not root.is_dir():
            raise MissingDataError(f"there is no folder {root}")
        for other in [] if spec.root is None else spec.root.candidates():
            if other.is_dir() and not other.samefile(root):
                text = f"{spec.name} is there twice: {root} is used, {other} is not"
                log_first_n(logging.WARNING, text, key="message")
        records = spec.layout(root)
        if not records:
            raise LayoutError(f"no images in {root}")
        named: dict[str, Record] = {}
        for one in records:
            if (other := named.setdefault(one["image_id"], one)) is not one:
                files = f"{other['file_name']} and {one['file_name']}"
                raise LayoutError(f"{files} have one name, {one['image_id']!r}")
    except (LayoutError, MissingDataError) as error:
        raise type(error)(f"{spec.name}: {error}. {spec.hint()}".strip()) from None
    return records


def registered_specs() -> dict[str, DatasetSpec]:
    """Specs of the data sets that this project registered, by name, in the order of registration."""
    return dict(_SPECS)


def get_records(name: str) -> list[Record]:
    """Records of a data set in Detectron2's catalog; another number than the complete one's is a warning.

    Raises:
        ValueError: no data set of this name, or one without images. Others as ``load_records``.
    """
    require_known(name)
    records = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"{name}: the data set has no images")
    expected = MetadataCatalog.get(name).get("expected_count")
    if expected not in (None, len(records)):
        text = f"{name}: {len(records)} of {expected} frames; its numbers are not the benchmark's"
        log_first_n(logging.WARNING, text, key="message")
    return records


def require_known(name: str) -> None:
    """Raise ValueError, with the names there are, unless ``name`` is a registered data set."""
    if name in DatasetCatalog:
        return
    close = difflib.get_close_matches(name, list(DatasetCatalog), n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown data set {name!r}.{guess} Data sets of your own are known where the file that registers "
        f"them is given (--register FILE.py). Known data sets: {', '.join(_SPECS)}"
    )


def register_segmentation_dataset(
    name: str,
    image_root: str | Path,
    label_root: str | Path | None,
    *,
    classes: Sequence[str],
    colors: Sequence[Sequence[int]] | None = None,
    label_map: Mapping[int, int] | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    pair_files: PairFiles | None = None,
    expected_count: int | None = None,
    overwrite: bool = False,
) -> None:
    """Register images with class labels, for training and closed-set evaluation. No file is touched.

    Args:
        name: name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        image_root: folder of the images (png, jpg, webp, bmp, ppm, tif; subfolders are looked into).
        label_root: folder of the label PNGs: single-channel, 8 bits, of the images' relative paths and stems.
            None: there are none, the images can be predicted only.
        classes: names of the train ids 0, 1, ...
        colors: RGB of each class, for overlays.
        label_map: raw label value to train id or 255 (ignored). Values it lacks, except 255, are errors.
            None: raw values are train ids.
        image_suffix, label_suffix: ends of the stems that differ between an image and its label, such as
            "_labels".
        pair_files: a function from the two folders to (image, label or None) paths, for any other layout.
        expected_count: number of frames; another number is a warning.
        overwrite: replace a data set of the same name.

    Raises:
        ValueError: the name is taken by another data set, ``classes`` are no names, each once, or
            ``label_map`` or ``colors`` do not fit them.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise ValueError(f"{name}: classes: expected a list of names such as ['road'], found {classes!r}")
    rgb = None if colors is None else tuple(map(tuple, colors))
    _register_own(
        name, CLOSED_SET, image_root, label_root, image_suffix, label_suffix, pair_files, label_map,
        overwrite=overwrite, classes=tuple(classes), colors=rgb, expected_count=expected_count,
    )  # fmt: skip


def register_anomaly_dataset(
    name: str,
    image_root: str | Path,
    label_root: str | Path | None,
    *,
    label_map: Mapping[int, int] | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    pair_files: PairFiles | None = None,
    protocol: str = "pooled",
    component_track: str | None = None,
    expected_count: int | None = None,
    overwrite: bool = False,
) -> None:
    """Register images with anomaly labels, for ``--eval-only``. No file is touched.

    Args:
        label_map: raw label value to 0 (known), 1 (anomaly) or 255 (ignored); values it lacks, except 255,
            are errors. None: the labels hold 0, 1 and 255 themselves.
        protocol: metric protocol: "pooled", "fishyscapes", "smiyc" or "per_image".
        component_track: object sizes of the component metrics: "anomaly", "obstacle" or None (none computed).
        name, image_root, label_root, image_suffix, label_suffix, pair_files, expected_count, overwrite: as in
            ``register_segmentation_dataset``.

    Raises:
        ValueError: the name is taken by another data set, or an argument has an unknown value.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"{name}: protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
    if component_track not in (None, "anomaly", "obstacle"):
        raise ValueError(
            f"{name}: component_track must be 'anomaly', 'obstacle' or None, found {component_track!r}"
        )
    _register_own(
        name, ANOMALY, image_root, label_root, image_suffix, label_suffix, pair_files, label_map,
        overwrite=overwrite, expected_count=expected_count, protocol=protocol,
        component_track=component_track,
    )  # fmt: skip


def _register_own(
    name: str, kind: str, image_root: str | Path, label_root: str | Path | None, image_suffix: str,
    label_suffix: str, pair_files: PairFiles | None, label_map: Mapping[int, int] | None, *, overwrite: bool,
    **more: Any,
) -> None:  # fmt: skip
    if not isinstance(label_map, Mapping | None):
        raise ValueError(f"{name}: label_map: expected {{raw value: target}}, found {label_map!r}")
    labels = None if label_root is None else str(label_root)
    layout = OwnFolders(labels, image_suffix, label_suffix, pair_files)
    pairs = None if label_map is None else tuple(sorted(label_map.items(), key=str))
    root = DataRoot((str(image_root),))
    register(DatasetSpec(name, kind, layout, root, label_map=pairs, **more), overwrite=overwrite)
