"""Data sets of one's own, and which data sets are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmm_anomaly.metrics import PROTOCOLS

from .errors import LayoutError
from .label_rule import ANOMALY, CLOSED_SET
from .pairing import LABEL_EXTENSIONS, Record, list_files, make_record, pair
from .registration import register, registered_specs
from .roots import FixedRoot
from .spec import DatasetSpec

COMPONENT_TRACKS = (None, "anomaly", "obstacle")

PairFiles = Callable[[Path, "Path | None"], Iterable["tuple[str | Path, str | Path | None]"]]


@dataclass(frozen=True)
class DatasetStatus:
    """Whether the folders of a data set are there. ``root`` is None for data that need no files."""

    name: str
    root: Path | None
    found: bool
    hint: str


def dataset_status() -> list[DatasetStatus]:
    """For each data set of this project whether its folders are there; looks for folders only."""
    statuses = []
    for spec in registered_specs().values():
        root = None if spec.root is None else spec.root.path()
        found = root is None or (root.is_dir() and all((root / path).exists() for path in spec.needs))
        found = found and all(other.path().is_dir() for other, _ in spec.companions)
        statuses.append(DatasetStatus(spec.name, root, found, spec.hint()))
    return statuses


@dataclass(frozen=True)
class _OwnLayout:
    """Images and labels in two folders given as paths."""

    image_root: str
    label_root: str | None
    image_suffix: str
    label_suffix: str
    pair_files: PairFiles | None

    def __call__(self, root: Path) -> list[Record]:
        labels_in = None if self.label_root is None else FixedRoot(self.label_root).path()
        if self.pair_files is not None:
            return [_record(root, Path(image), label) for image, label in self.pair_files(root, labels_in)]
        labels = None
        if labels_in is not None:
            labels = list_files(
                labels_in, suffix=self.label_suffix, extensions=LABEL_EXTENSIONS, recursive=True
            )
        # Both kinds may lie in one folder.
        others = set() if labels is None else set(labels.values())
        images = list_files(root, suffix=self.image_suffix, recursive=True, exclude=others)
        return pair(images, labels)


def _record(root: Path, image: Path, label: str | Path | None) -> Record:
    for path in (image, label):
        if path is not None and not Path(path).is_file():
            raise LayoutError(f"pair_files names a file that is not there: {path}")
    key = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
    return make_record(key.with_suffix("").as_posix(), image, None if label is None else Path(label))


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
        image_root: folder of the images (png, jpg, webp, bmp, ppm; subfolders are looked into).
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
        ValueError: the name is taken by another data set, or ``label_map`` or ``colors`` do not fit the
            classes.
    """
    _register_own(
        name,
        _OwnLayout(str(image_root), _text(label_root), image_suffix, label_suffix, pair_files),
        label_map,
        overwrite,
        evaluator_type=CLOSED_SET,
        classes=tuple(classes),
        colors=None if colors is None else tuple((int(r), int(g), int(b)) for r, g, b in colors),
        expected_count=expected_count,
    )


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
    if component_track not in COMPONENT_TRACKS:
        raise ValueError(
            f"{name}: component_track must be 'anomaly', 'obstacle' or None, found {component_track!r}"
        )
    _register_own(
        name,
        _OwnLayout(str(image_root), _text(label_root), image_suffix, label_suffix, pair_files),
        label_map,
        overwrite,
        evaluator_type=ANOMALY,
        expected_count=expected_count,
        protocol=protocol,
        component_track=component_track,
    )


def _register_own(
    name: str, layout: _OwnLayout, label_map: Mapping[int, int] | None, overwrite: bool, **fields: Any
) -> None:
    frozen = None if label_map is None else tuple(sorted(label_map.items(), key=str))
    root = FixedRoot(layout.image_root)
    register(
        DatasetSpec(name=name, layout=layout, root=root, label_map=frozen, **fields), overwrite=overwrite
    )


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
