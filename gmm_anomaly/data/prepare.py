"""Preparing downloads that cannot be used as they are; run by ``datasets/prepare_*.py``.

Each can be run again: finished files are kept, and a file gets its name only when it is complete.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
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
from .reading import image_size, read_image, read_label, read_raw_label

DESCRIPTIONS = {
    "coco_stuff10k": "Convert COCO-Stuff 10k v1.1 from Matlab files to the layout of MMSegmentation.",
    "fishyscapes_static": "Make the images of Fishyscapes Static from Cityscapes frames and signed overlays.",
    "lost_and_found": "Make label maps of LostAndFound that hold 0 known, 1 anomaly and 255 void, for "
    "programs that do not map labelIds themselves.",
}

# ---- COCO-Stuff 10k ----

# Category ids of the original annotations run to 182; these were never used.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
# Original id to the value in the prepared PNG: 0 unlabelled, 1 to 171 the classes.
PREPARED_VALUES = {
    original: value
    for value, original in enumerate(number for number in range(183) if number not in _UNUSED_IDS)
}


def convert_labels(original: np.ndarray, where: str) -> np.ndarray:
    """Category ids 0 .. 182 of the original annotations to 0 unlabelled, 1 .. 171 the classes.

    Args:
        original: (H, W) integers.
        where: the file, for the message.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: an id that COCO-Stuff does not have.
    """
    bad = sorted(set(np.unique(original).tolist()) - set(PREPARED_VALUES))
    if bad or original.ndim != 2:
        raise ValueError(
            f"{where}: the ids {bad} in shape {original.shape} are not COCO-Stuff's; is this version 1.1?"
        )
    table = np.zeros(256, np.uint8)
    table[list(PREPARED_VALUES)] = list(PREPARED_VALUES.values())
    return cv2.LUT(np.ascontiguousarray(original, np.uint8), table)


def prepare_coco_stuff(root: Path) -> int:
    """Make ``images/{train,test}2014`` and ``annotations/{train,test}2014`` under ``root``.

    Returns:
        How many labels were made.

    Raises:
        LayoutError: a list, an image or an annotation is not there. ValueError: an annotation that cannot be.
        ImportError: scipy, which reads Matlab files, is not installed.
    """
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
    image, annotation = annotations.with_name("images") / f"{name}.jpg", annotations / f"{name}.mat"
    copy = image.parent / label.parent.name / image.name
    for file, made in ((image, copy), (annotation, label)):
        if not made.is_file() and not file.is_file():
            raise LayoutError(f"no {file}, which imageLists names")
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


# ---- Fishyscapes Static ----


def static_image(base: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """Frame of Fishyscapes Static.

    Args:
        base: (H, W, 3) uint8 RGB, the Cityscapes frame.
        overlay: (H, W, 3) numbers, what is added to it; fractions are cut off, as the benchmark's code does.

    Returns:
        (H, W, 3) uint8: the sum, clipped to 0 .. 255.
    """
    return np.clip(base.astype(np.int32) + overlay.astype(np.int32), 0, 255).astype(np.uint8)


def prepare_static(root: Path, cityscapes_root: Path, *, check: bool = False) -> int:
    """Make ``root/images/NUMBER_FRAME.png`` for every label in ``root``.

    Args:
        root: folder of the unpacked download.
        cityscapes_root: folder that holds ``leftImg8bit/val``.
        check: compare the finished ones with what they should be instead of keeping them unseen.

    Returns:
        How many images were made.

    Raises:
        LayoutError: no labels, no or several overlays for one, or no Cityscapes frame.
        ValueError: a damaged file, another size, or (``check``) an image that differs.
    """
    labels = fishyscapes_labels(root)
    if not labels:
        raise LayoutError(f"no *_labels.png in {root}; unpack the download there, or give it with --archive")
    made = 0
    for key, label in tqdm(labels.items(), desc=f"images of {root.name}", unit="image"):
        target = root / STATIC_IMAGES / f"{key}.png"
        if target.is_file() and not check:
            continue
        number, frame = key.split("_", 1)
        overlays = sorted(root.glob(f"{number}_*rgb.npz"))
        if len(overlays) != 1:
            raise LayoutError(
                f"{label} needs one overlay of the same number (*_rgb.npz), found {len(overlays)}"
            )
        base = cityscapes_root / "leftImg8bit" / "val" / frame.split("_")[0] / f"{frame}_leftImg8bit.png"
        if not base.is_file():
            raise LayoutError(f"no Cityscapes frame {base}; {CITYSCAPES_ROOT.advice()}")
        made += _made(target, _static_frame(label, overlays[0], base), _read_rgb)
    return made


def _static_frame(label: Path, overlay_path: Path, base_path: Path) -> np.ndarray:
    try:
        with np.load(overlay_path, allow_pickle=False) as stored:
            overlay = stored["rgb"]
        if overlay.ndim != 3 or overlay.shape[2] != 3 or not np.isfinite(overlay).all():
            raise ValueError(f"found shape {overlay.shape}, or NaN or infinities")
    except Exception as error:  # zipfile, zlib, numpy and the missing key each raise their own
        raise ValueError(
            f"{overlay_path} is no overlay: expected numbers (height, width, 3) with the key 'rgb' "
            f"({type(error).__name__}: {error})"
        ) from error
    base = _read_rgb(base_path)
    sizes = {"overlay": overlay.shape[:2], "frame": base.shape[:2], "label": image_size(label)}
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        raise ValueError(f"{overlay_path}, {base_path} and {label} are of different sizes: {found}")
    return static_image(base, overlay)


def _read_rgb(path: Path) -> np.ndarray:
    return read_image({"file_name": str(path)}, "RGB")


def unpack_flat(archive: Path, folder: Path, endings: tuple[str, ...]) -> None:
    """Unpack the files of a zip archive whose names have one of the endings, without the archive's folders.

    Raises:
        FileNotFoundError: no such archive. ValueError: not a zip file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(archive) as stored:
            for member in tqdm(stored.infolist(), desc=f"unpacking {archive.name}", unit="file"):
                target = folder / Path(member.filename).name
                there = target.is_file() and target.stat().st_size == member.file_size
                if there or not target.name.endswith(endings) or target.name.startswith("."):
                    continue
                with stored.open(member) as source, replacing(target) as temporary:
                    with temporary.open("wb") as file:
                        shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive} is no complete zip archive ({error}); download it again") from error


# ---- LostAndFound ----

# As the tracks of SegmentMeIfYouCan name theirs.
LABELS = "labels_masks"
LABEL_SUFFIX = "_labels_semantic"


def prepare_lost_and_found(root: Path, split: str, *, check: bool = False) -> int:
    """Make ``root/labels_masks/SPLIT/SCENE/FRAME_labels_semantic.png``.

    Args:
        root: folder that holds ``leftImg8bit`` and ``gtCoarse``.
        split: "train" or "test".
        check: compare the finished ones with what they should be instead of keeping them unseen.

    Returns:
        How many label maps were made.

    Raises:
        LayoutError: a folder, an image or a label is not there.
        ValueError: a damaged file, or (``check``) a label map that differs.
    """
    rule = LOST_AND_FOUND[0].rule()

    def make(record: Record) -> bool:
        scene = Path(record["file_name"]).parent.name
        target = root / LABELS / split / scene / f"{record['image_id']}{LABEL_SUFFIX}.png"
        if target.is_file() and not check:
            return False
        return _made(target, read_label(record, rule), read_raw_label)

    records = lost_and_found_pairs(split)(root)
    if not records:
        raise LayoutError(f"no images in {root / 'leftImg8bit' / split}")
    return sum(thread_map(make, records, tqdm_class=tqdm, desc=f"label maps of {split}", unit="label"))


# ---- What they share ----


def _made(target: Path, image: np.ndarray, read: Callable[[Path], np.ndarray]) -> bool:
    """Save an image, or compare the one that is there with it; returns whether it was made."""
    if not target.is_file():
        _save(target, image)
        return True
    if not np.array_equal(read(target), image):
        raise ValueError(f"{target} is not what its sources give; remove it and run again")
    return False


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
    parser = argparse.ArgumentParser(prog=f"prepare_{data_set}.py", description=DESCRIPTIONS[data_set])
    if data_set != "coco_stuff10k":
        parser.add_argument("--check", action="store_true", help="compare finished files with their sources")
    if data_set == "lost_and_found":
        parser.add_argument("--split", choices=("train", "test"), action="append", help="default: both")
    if data_set == "fishyscapes_static":
        parser.add_argument("--version", type=int, choices=list(STATIC_ROOTS), required=True)
        parser.add_argument("--archive", type=Path, metavar="ZIP", help="fs_val_v*.zip, to be unpacked first")
    options = parser.parse_args(arguments)
    try:
        if data_set == "coco_stuff10k":
            made = prepare_coco_stuff(COCO_STUFF_ROOT.require())
        elif data_set == "lost_and_found":
            root = LOST_AND_FOUND_ROOT.require()
            splits = options.split or LOST_AND_FOUND_COUNTS
            made = sum(prepare_lost_and_found(root, split, check=options.check) for split in splits)
        else:
            place = STATIC_ROOTS[options.version]
            if options.archive:
                unpack_flat(options.archive, place.path(), ("_labels.png", "rgb.npz"))
            made = prepare_static(place.require(), CITYSCAPES_ROOT.path(), check=options.check)
        print(f"{made} files made")
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130  # what shells give for Ctrl-C
    return 0
