"""Evaluation of score maps that any program saved, one file an image: `gmm-anomaly score`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from gmm_anomaly.data.pairing import visible_files

from .anomaly import AnomalyEvaluator
from .files import json_text, save_json
from .records import EvaluatedRecords
from .results import TaskResult, format_results, results_document
from .score_files import SCORE_EXTENSIONS, read_score_map

logger = logging.getLogger(__name__)

# Ends of image names that programs leave out when they name their maps.
IMAGE_SUFFIXES = ("_leftImg8bit",)
# Fishyscapes' own format names maps "0000_anomaly.npy" for the image "0000_<frame>".
FISHYSCAPES_NUMBER = re.compile(r"(\d{4})_")


def evaluate_saved_scores(
    folder: str | Path,
    dataset_name: str,
    *,
    method: str | None = None,
    protocol: str | None = None,
    component_track: str | None = None,
    precision: str | None = None,
    suffix: str = "",
    key: str | None = None,
    resize: bool = False,
    progress: bool = True,
) -> dict[str, TaskResult]:
    """Metrics of saved maps on a registered data set.

    Args:
        folder: holds one map per image (subfolders are looked into), see ``read_score_map`` for the formats.
            A map belongs to the image whose ``image_id`` or file stem is its own relative path or stem.
        dataset_name, protocol, component_track: as for ``AnomalyEvaluator``.
        method: name of the score in the results, by default the folder's.
        precision: as for ``AnomalyEvaluator``; under the ``smiyc`` protocols None is float32 for PNG, whose
            pixels float16 cannot hold.
        suffix: what the maps' stems end with beyond the image's name, for example "_anomaly".
        key: name of the array in ``.npz`` and HDF5 files.
        resize: bring maps of another size to the label's by bilinear interpolation; without it they are an
            error.
        progress: show a progress bar.

    Returns:
        What ``AnomalyEvaluator.evaluate`` returns; details tell ``scores``, ``resized`` and ``ranks_only``.

    Raises:
        FileNotFoundError: no such folder, or maps are missing (named).
        ValueError: two maps for one image (or the reverse), a map that cannot be read, or one of another
            size. Others as ``AnomalyEvaluator``.
    """
    root = Path(folder)
    name = method or root.resolve().name
    records = EvaluatedRecords(dataset_name, "anomaly")
    files = match_files(root, records, suffix)
    protocol = protocol or records.metadata.get("protocol") or "pooled"
    if protocol.startswith("smiyc") and any(path.suffix.lower() == ".png" for path in files):
        precision = precision or "float32"
    evaluator = AnomalyEvaluator(
        dataset_name,
        [name],
        protocol=protocol,
        component_track=component_track,
        precision=precision,
        distributed=False,
    )
    resized = ranks_only = 0
    for index, path in enumerate(tqdm(files, unit="map", disable=not progress)):
        found = read_score_map(path, key)
        score = found.values
        shape = records.label(index).shape if resize else score.shape
        if score.shape != shape:
            score = score.astype(np.result_type(score, np.float32))
            score = cv2.resize(score, shape[::-1], interpolation=cv2.INTER_LINEAR)
            resized += 1
        ranks_only += found.ranks_only
        try:
            evaluator.process([records.records[index]], [{"anomaly_scores": {name: score}}])
        except ValueError as error:
            hint = "" if resize or "has the size" not in str(error) else "; --resize interpolates it"
            raise ValueError(f"{path}: {error}{hint}") from error
    if ranks_only not in (0, len(files)):
        raise ValueError(
            f"{root}: {ranks_only} of {len(files)} maps are PNGs without text chunks scale and offset, the "
            "others have units; their scores cannot be compared"
        )
    if ranks_only:
        logger.warning(
            "%s: the PNGs have no scale, so pixel values are taken as scores. Metrics depend on ranks only "
            "and are valid if one monotone function, the same for every image, made all the PNGs; thresholds "
            "are in pixel values",
            root,
        )
    results = evaluator.evaluate()
    assert results is not None
    for result in results.values():
        result.details |= {"scores": str(root), "resized": resized, "ranks_only": bool(ranks_only)}
    return results


def match_files(folder: Path, records: EvaluatedRecords, suffix: str) -> list[Path]:
    """The map of each record, in the records' order.

    Surplus maps are only logged: benchmarks keep the maps of several splits in one folder.

    Raises:
        FileNotFoundError: no such folder, or records without a map.
        ValueError: two maps for one record, or one for two.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--scores: there is no folder {folder}")
    by_name: dict[str, list[Path]] = {}
    for path in sorted(visible_files(folder)):
        if path.suffix.lower() not in SCORE_EXTENSIONS or not path.stem.endswith(suffix):
            continue
        stem = path.stem.removesuffix(suffix)
        for name in {stem, (path.relative_to(folder).parent / stem).as_posix().replace("/", "__")}:
            by_name.setdefault(name, []).append(path)

    found, missing = [], []
    owners: dict[Path, str] = {}
    for index, record in enumerate(records.records):
        names = _names(records.image_id(index), record)
        paths = next((by_name[name] for name in names if name in by_name), [])
        if len(paths) > 1:
            raise ValueError(
                f"{paths[0]} and {paths[1]} both stand for the image {names[0]!r}; keep one of them, or "
                "tell them apart with --suffix"
            )
        found += paths
        if not paths:
            missing.append(names[0])
        elif owners.setdefault(paths[0], names[0]) != names[0]:
            raise ValueError(f"{paths[0]} stands for two images, {owners[paths[0]]} and {names[0]}")
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(records)} images of {records.name} have no score map, for "
            f"example {', '.join(missing[:5])} (with {', '.join(SCORE_EXTENSIONS)}; --suffix names what else "
            "the stems end with)"
        )
    surplus = sorted({path for paths in by_name.values() for path in paths} - set(found))
    if surplus:
        names = ", ".join(path.name for path in surplus[:5])
        logger.warning("%s: %d maps belong to no image of %s: %s", folder, len(surplus), records.name, names)
    return found


def _names(image_id: str, record: Mapping[str, Any]) -> list[str]:
    """What a record's map may be called, the surest first."""
    stem = Path(str(record["file_name"])).stem
    names = [image_id, stem, *(stem.removesuffix(suffix) for suffix in IMAGE_SUFFIXES)]
    number = FISHYSCAPES_NUMBER.match(image_id)
    if number:
        names.append(number.group(1))
    return list(dict.fromkeys(names))


def run(args: argparse.Namespace) -> None:
    """`gmm-anomaly score`."""
    found = evaluate_saved_scores(
        args.scores,
        args.dataset,
        method=args.method,
        protocol=args.protocol,
        component_track=args.components,
        precision=args.precision,
        suffix=args.suffix,
        key=args.key,
        resize=args.resize,
    )
    results = {args.dataset: found}
    document = results_document(results, scores=str(args.scores))
    print(json_text(document) if args.json == Path("-") else format_results(results))
    if args.json and args.json != Path("-"):
        save_json(args.json, document)
