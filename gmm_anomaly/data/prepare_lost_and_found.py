"""Making label maps of LostAndFound that hold 0 known, 1 anomaly and 255 void, for programs that do not map
labelIds themselves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .atomic import replacing
from .errors import LayoutError
from .label_rule import LabelRule
from .lost_and_found import COUNTS, LABEL_MAP, ROOT, split_layout
from .pairing import Record
from .preparing import require_folder, run_preparation
from .reading import read_label, read_raw_label
from .threads import in_threads

# As the tracks of SegmentMeIfYouCan name theirs.
LABELS = "labels_masks"
LABEL_SUFFIX = "_labels_semantic"


def prepare_labels(root: Path, split: str, *, check: bool = False) -> int:
    """Make ``root/labels_masks/SPLIT/SCENE/FRAME_labels_semantic.png``; finished ones are kept.

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
    rule = LabelRule.build(f"lost_and_found_{split}", dict(LABEL_MAP), num_classes=2)

    def make(record: Record) -> bool:
        target = label_path(root, split, record)
        if target.is_file() and not check:
            return False
        label = read_label(record, rule)
        if target.is_file():
            if not np.array_equal(read_raw_label(str(target)), label):
                raise ValueError(f"{target} differs from its labelIds; remove it and run again")
            return False
        with replacing(target) as temporary:
            Image.fromarray(label).save(temporary, format="PNG")
            if not np.array_equal(read_raw_label(str(temporary)), label):
                raise ValueError(f"{target} does not read as it was written; is the disk full?")
        return True

    records = split_layout(split)(root)
    if not records:
        raise LayoutError(f"no images in {root / 'leftImg8bit' / split}")
    return sum(in_threads(make, records, f"label maps of {split}", "label"))


def label_path(root: Path, split: str, record: Record) -> Path:
    """Where the label map of a frame lies."""
    scene = Path(str(record["file_name"])).parent.name
    return root / LABELS / split / scene / f"{record['image_id']}{LABEL_SUFFIX}.png"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of LostAndFound (default: where it is looked for)")
    parser.add_argument("--split", choices=sorted(COUNTS), action="append", help="default: both")
    parser.add_argument(
        "--check", action="store_true", help="compare finished label maps with what they should be"
    )
    options = parser.parse_args(arguments)
    root = options.root or ROOT.path()

    def prepare() -> str:
        require_folder(root, ROOT)
        made = sum(prepare_labels(root, split, check=options.check) for split in options.split or COUNTS)
        return f"{made} label maps made in {root / LABELS}"

    return run_preparation(prepare)
