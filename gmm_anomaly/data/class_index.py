"""How many pixels of each class every training image has: counted once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from .atomic import replacing
from .label_rule import LabelRule
from .pairing import Record
from .reading import read_label
from .streets import RENDERER_VERSION
from .threads import in_threads

logger = logging.getLogger(__name__)


def class_pixel_counts(
    name: str, records: Sequence[Record], rule: LabelRule, folder: str | Path
) -> np.ndarray:
    """Pixel counts per image and class; rank 0 reads or makes them, the other ranks receive them.

    Args:
        name: of the data set; the index is ``folder``/``name``.class_index.npz.
        records: its records, all with labels.
        rule: how its labels are read.
        folder: made if it is not there.

    Returns:
        (N, C) int64, in the order of ``records``.

    Raises:
        ValueError, FileNotFoundError: a label cannot be read, see ``read_label``.
    """
    counts = None
    if comm.is_main_process():
        counts = _load_or_count(Path(folder) / f"{name}.class_index.npz", records, rule)
    return comm.all_gather(counts)[0]


def _load_or_count(path: Path, records: Sequence[Record], rule: LabelRule) -> np.ndarray:
    key = _fingerprint(records, rule)
    counts = _load(path, key, (len(records), rule.num_classes))
    if counts is None:
        counts = _count(records, rule)
        _save(path, key, counts)
    return counts


def _fingerprint(records: Sequence[Record], rule: LabelRule) -> str:
    """Changes when the list of labels, one of the files or the label map does."""
    files: list[Any] = []
    for record in records:
        if "render" in record:
            files.append([RENDERER_VERSION, record["render"]])
        else:
            state = os.stat(record["sem_seg_file_name"])
            files.append([record["sem_seg_file_name"], state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps([rule.mapping, rule.num_classes, files]).encode()).hexdigest()


def _load(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """The counts, or None if there are none, or of something else, or the file cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found, counts = str(stored["key"]), stored["counts"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s: %s); counting again", path, type(error).__name__, error)
        return None
    if found != key or counts.shape != shape:
        logger.info("%s is of other labels; counting again", path)
        return None
    return counts.astype(np.int64)


def _save(path: Path, key: str, counts: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, key=np.array(key), counts=counts)


def _count(records: Sequence[Record], rule: LabelRule) -> np.ndarray:
    def one(record: Record) -> np.ndarray:
        return np.bincount(read_label(record, rule).ravel(), minlength=256)[: rule.num_classes]

    rows = in_threads(one, records, f"classes of {rule.dataset}", "label")
    return np.stack(list(rows)).astype(np.int64)
