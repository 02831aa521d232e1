"""Converting COCO-Stuff 10k v1.1 from its Matlab files to the PNGs and folders that MMSegmentation uses."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .atomic import replacing
from .coco_stuff import LABEL_SUFFIX, PREPARED_VALUES, ROOT, SPLITS
from .errors import LayoutError
from .preparing import require_folder, run_preparation
from .threads import in_threads

_REFUSED = 255


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
    if original.ndim != 2 or original.min() < 0 or original.max() > 255:
        raise ValueError(f"{where}: expected (H, W) ids in 0 .. 182, found shape {original.shape}")
    table = np.full(256, _REFUSED, np.uint8)
    table[list(PREPARED_VALUES)] = list(PREPARED_VALUES.values())
    converted = cv2.LUT(np.ascontiguousarray(original, np.uint8), table)
    if (converted == _REFUSED).any():
        bad = sorted(set(np.unique(original).tolist()) - set(PREPARED_VALUES))
        raise ValueError(f"{where}: the ids {bad} are not COCO-Stuff's; is this version 1.1?")
    return converted


def prepare(root: Path) -> int:
    """Make ``images/{train,test}2014`` and ``annotations/{train,test}2014`` under ``root``; finished ones are
    kept.

    Returns:
        How many labels were made.

    Raises:
        LayoutError: a list, an image or an annotation is not there. ValueError: an annotation that cannot be.
        ImportError: scipy, which reads Matlab files, is not installed.
    """
    _scipy_io()
    made = 0
    for split, folder, _ in SPLITS:
        listed = root / "imageLists" / f"{split}.txt"
        if not listed.is_file():
            raise LayoutError(f"no {listed}; unpack cocostuff-10k-v1.1.zip into {root}")
        names = listed.read_text().split()
        made += sum(in_threads(partial(_convert, root, folder), names, f"labels of {split}", "label"))
    return made


def _convert(root: Path, folder: str, name: str) -> bool:
    image, annotation = root / "images" / f"{name}.jpg", root / "annotations" / f"{name}.mat"
    label = root / "annotations" / folder / f"{name}{LABEL_SUFFIX}.png"
    copy = root / "images" / folder / image.name
    if not copy.is_file():
        if not image.is_file():
            raise LayoutError(f"no image {image}, which imageLists names")
        with replacing(copy) as temporary:
            try:
                os.link(image, temporary)
            except OSError:  # file systems without hard links
                shutil.copyfile(image, temporary)
    if label.is_file():
        return False
    if not annotation.is_file():
        raise LayoutError(f"no annotation {annotation}, which imageLists names")
    try:
        original = _scipy_io().loadmat(str(annotation), variable_names=["S"])["S"]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise ValueError(f"{annotation} cannot be read ({type(error).__name__}: {error})") from error
    with replacing(label) as temporary:
        Image.fromarray(convert_labels(original, str(annotation))).save(temporary, format="PNG")
    return True


def _scipy_io():
    try:
        import scipy.io
    except ModuleNotFoundError:
        raise ImportError("reading Matlab files needs scipy: pip install scipy") from None
    return scipy.io


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--root", type=Path, help="folder of the unpacked download (default: where it is looked for)"
    )
    options = parser.parse_args(arguments)
    root = options.root or ROOT.path()

    def convert() -> str:
        require_folder(root, ROOT)
        return f"{prepare(root)} labels made in {root / 'annotations'}"

    return run_preparation(convert)
