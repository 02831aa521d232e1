"""Preparing downloads that cannot be used as they are; run by ``datasets/prepare_*.py``.

Each can be run again: finished files are kept, and a file gets its name only when it is complete.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from .atomic import replacing
from .benchmarks import (
    CITYSCAPES_ROOT,
    COCO_STUFF_ROOT,
    COCO_STUFF_SPLITS,
    COCO_STUFF_SUFFIX,
    LOST_AND_FOUND,
    LOST_AND_FOUND_COUNTS,
    LOST_AND_FOUND_ROOT,
    STATIC_IMAGES,
    STATIC_ROOTS,
    fishyscapes_labels,
    lost_and_found_pairs,
)
from .pairing import LayoutError, Record
from .reading import read_image, read_label

# ---- COCO-Stuff 10k: from Matlab files to the PNGs and folders that MMSegmentation uses ----

# Category ids of the original annotations run to 182; these were never used.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
# Original id to the value in the prepared PNG: 0 unlabelled, 1 to 171 the classes.
PREPARED_VALUES = {
    original: value
    for value, original in enumerate(number for number in range(183) if number not in _UNUSED_IDS)
}


def convert_labels(original: np.ndarray, where: str) -> np.ndarray:
    """Category ids 0 .. 182 of the original annotations, (H, W) integers, to (H, W) uint8: 0 unlabelled,
    1 .. 171 the classes. Raises ValueError, with the file ``where``, for an id that COCO-Stuff lacks."""
    bad = sorted(set(np.unique(original).tolist()) - set(PREPARED_VALUES))
    if bad:
        raise ValueError(f"{where}: the ids {bad} are not COCO-Stuff's; is this version 1.1?")
    table = np.zeros(256, np.uint8)
    table[list(PREPARED_VALUES)] = list(PREPARED_VALUES.values())
    return cv2.LUT(np.ascontiguousarray(original, np.uint8), table)


def _prepare_coco_stuff(root: Path) -> int:
    """Makes ``images/{train,test}2014`` and ``annotations/{train,test}2014``; returns how many labels."""
    made = 0
    for split, folder, _ in COCO_STUFF_SPLITS:
        listed = root / "imageLists" / f"{split}.txt"
        if not listed.is_file():
            raise LayoutError(f"no {listed}; unpack cocostuff-10k-v1.1.zip into {root}")
        names = listed.read_text().split()
        labels = [root / "annotations" / folder / f"{name}{COCO_STUFF_SUFFIX}.png" for name in names]
        made += sum(thread_map(_convert, names, labels, tqdm_class=tqdm, desc=f"labels of {split}"))
    return made


def _convert(name: str, label: Path) -> bool:
    annotations = label.parents[1]
    annotation, image = annotations / f"{name}.mat", annotations.with_name("images") / f"{name}.jpg"
    copy = image.parent / label.parent.name / image.name
    for source, target in ((image, copy), (annotation, label)):
        if not target.is_file() and not source.is_file():
            raise LayoutError(f"no {source}, which imageLists names")
    if not copy.is_file():
        with replacing(copy) as temporary:
            try:
                os.link(image, temporary)
            except OSError:  # file systems without hard links
                shutil.copyfile(image, temporary)
    if label.is_file():
        return False
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise ImportError("reading Matlab files needs scipy: pip install scipy") from None
    try:
        original = loadmat(str(annotation), variable_names=["S"])["S"]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise ValueError(f"{annotation} cannot be read ({type(error).__name__}: {error})") from error
    _save(label, convert_labels(original, str(annotation)))
    return True


# ---- Fishyscapes Static: a Cityscapes validation frame plus the benchmark's signed overlay ----


def _prepare_static(root: Path, cityscapes: Path) -> int:
    """Makes ``root/images/NUMBER_FRAME.png`` for every label in ``root``; returns how many."""
    labels = fishyscapes_labels(root)
    if not labels:
        raise LayoutError(f"no *_labels.png in {root}; unpack the download there, or give it with --archive")
    made = 0
    for key, label in tqdm(labels.items(), desc=f"images of {root.name}", unit="image"):
        target = root / STATIC_IMAGES / f"{key}.png"
        if target.is_file():
            continue
        number, frame = key.split("_", 1)
        overlays = list(root.glob(f"{number}_*rgb.npz"))
        if len(overlays) != 1:
            raise LayoutError(f"{label} needs one overlay {number}_*rgb.npz, found {len(overlays)}")
        base = cityscapes / "leftImg8bit" / "val" / frame.split("_")[0] / f"{frame}_leftImg8bit.png"
        if not base.is_file():
            raise LayoutError(f"no Cityscapes frame {base}; {CITYSCAPES_ROOT.advice()}")
        pixels = read_image({"file_name": str(base)}, "RGB")
        # Fractions are cut off, as the benchmark's code does.
        total = pixels.astype(np.int32) + _read_overlay(overlays[0], pixels.shape).astype(np.int32)
        _save(target, np.clip(total, 0, 255).astype(np.uint8))
        made += 1
    return made


def _read_overlay(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as stored:
            overlay = stored["rgb"]
        if overlay.shape != shape or not np.isfinite(overlay).all():
            raise ValueError(f"found shape {overlay.shape}, or NaN or infinities")
    except Exception as error:  # zipfile, zlib, numpy and the missing key each raise their own
        raise ValueError(
            f"{path}: expected finite numbers of the frame's shape {shape} with the key 'rgb' "
            f"({type(error).__name__}: {error})"
        ) from error
    return overlay


def _unpack_flat(archive: Path, folder: Path, endings: tuple[str, ...]) -> None:
    """Unpacks the files whose names have one of the endings, without the archive's folders."""
    try:
        with zipfile.ZipFile(archive) as stored:
            for member in tqdm(stored.infolist(), desc=f"unpacking {archive.name}", unit="file"):
                target = folder / Path(member.filename).name
                if target.name.endswith(endings) and not target.name.startswith(".") and not target.exists():
                    with replacing(target) as temporary:
                        temporary.write_bytes(stored.read(member))
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive} is no complete zip archive ({error}); download it again") from error


# ---- LostAndFound: label maps of 0 known, 1 anomaly and 255 void, for programs that map no labelIds ----


def _prepare_lost_and_found(root: Path) -> int:
    """Makes ``root/labels_masks/SPLIT/SCENE/FRAME_labels_semantic.png``, as the tracks of SegmentMeIfYouCan
    name theirs, for the splits that are there; returns how many."""
    rule = LOST_AND_FOUND[0].rule()

    def make(record: Record) -> bool:
        image = Path(record["file_name"])
        folder = root / "labels_masks" / image.parent.relative_to(root / "leftImg8bit")
        target = folder / f"{record['image_id']}_labels_semantic.png"
        if target.is_file():
            return False
        _save(target, read_label(record, rule))
        return True

    layouts = [lost_and_found_pairs(split) for split in LOST_AND_FOUND_COUNTS]
    there = [layout for layout in layouts if (root / layout.images).is_dir()]
    if not there:
        raise LayoutError(f"{root} has neither {' nor '.join(layout.images for layout in layouts)}")
    records = [record for layout in there for record in layout(root)]
    return sum(thread_map(make, records, tqdm_class=tqdm, desc="label maps", unit="label"))


def _save(target: Path, image: np.ndarray) -> None:
    with replacing(target) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", compress_level=3)


def main(data_set: str, arguments: Sequence[str] | None = None) -> int:
    """The commands ``datasets/prepare_DATA_SET.py``.

    Args:
        data_set: "coco_stuff10k", "fishyscapes_static" or "lost_and_found".
        arguments: of the command line; None: those of this process.

    Returns:
        Exit status: 0; 1 after an error that a message explains; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=f"Make the files of {data_set} that the download lacks; where it lies is said by the "
        "environment, see datasets/README.md."
    )
    if data_set == "fishyscapes_static":
        parser.add_argument("--version", type=int, choices=list(STATIC_ROOTS), required=True)
        parser.add_argument("--archive", type=Path, metavar="ZIP", help="fs_val_v*.zip, to be unpacked first")
    options = parser.parse_args(arguments)
    try:
        if data_set == "coco_stuff10k":
            made = _prepare_coco_stuff(COCO_STUFF_ROOT.require())
        elif data_set == "lost_and_found":
            made = _prepare_lost_and_found(LOST_AND_FOUND_ROOT.require())
        else:
            place = STATIC_ROOTS[options.version]
            if options.archive:
                _unpack_flat(options.archive, place.path(), ("_labels.png", "rgb.npz"))
            made = _prepare_static(place.require(), CITYSCAPES_ROOT.path())
        print(f"{made} files made")
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130  # what shells give for Ctrl-C
    return 0
