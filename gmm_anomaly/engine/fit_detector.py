"""A detector from a folder of ordinary frames: distances on a network that is not trained any further."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from gmm_anomaly.compat import keep_freed_memory
from gmm_anomaly.data.mapper import test_augmentations
from gmm_anomaly.data.outliers import get_source
from gmm_anomaly.data.pairing import IMAGE_EXTENSIONS, visible_files
from gmm_anomaly.data.reading import read_image

from .config import build_config
from .feature_distance import fit_distances
from .outliers import fit_outliers
from .trained_model import save_model

logger = logging.getLogger(__name__)

# Of configs/, what `gmm-anomaly fit` fits where it is not told otherwise.
CONFIG = "detector/effnetlite0.yaml"
# Evenly spaced cells of a frame that are used on each level: all of them at a stride of 16 or more.
CELLS_PER_FRAME = 4096


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in a folder and below, sorted; hidden ones are left out, links are followed.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = sorted(path for path in visible_files(folder) if path.suffix.lower() in IMAGE_EXTENSIONS)
    if not files:
        raise FileNotFoundError(f"{folder}: no images in this folder ({', '.join(IMAGE_EXTENSIONS)})")
    return files


def fit_detector(
    cfg: CfgNode, frames: Iterable[Path | np.ndarray], left_out: list[str] | None = None
) -> nn.Module:
    """Build a config's model and fit its distances to frames of what is normal. Collective.

    Frames are seen once, with ``MODEL.OUTLIER.NAME`` once more with objects pasted into them, at the size
    that test images are seen at; memory does not grow with their number. A file that cannot be
    read is named in the log and left out. Deterministic, and the same for any number of ranks, each of which
    must get all of the frames and uses its share.

    Args:
        cfg: with ``MODEL.CLASSIFIER.NAME`` "none", such as that of ``CONFIG``.
        frames: files, or (H, W, 3) uint8 RGB arrays, of any sizes. Two are enough.
        left_out: gets what was wrong with files that cannot be read.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: a model with classes, or without distances; no frame that can be read.
    """
    classifier, levels = cfg.MODEL.CLASSIFIER.NAME, cfg.MODEL.FEATURE_DISTANCE.FEATURES
    if classifier != "none" or not levels:
        raise ValueError(
            'a detector needs MODEL.CLASSIFIER.NAME "none" and levels in MODEL.FEATURE_DISTANCE.FEATURES, '
            f"found {classifier!r} and {levels}; the distances of a trained model are fitted by `gmm-anomaly "
            "train --fit-feature-distance`"
        )
    model = build_model(cfg).eval()
    if cfg.MODEL.OUTLIER.NAME:
        get_source(cfg.INPUT.OUTLIERS.SOURCE)  # what is wrong with it is told before frames are seen
        # They are seen twice.
        frames = list(frames)
    fit_distances(model, _items(cfg, frames, [] if left_out is None else left_out), CELLS_PER_FRAME)
    if model.feature_distance.outliers is not None:
        # What cannot be read has been named.
        fit_outliers(cfg, model, _items(cfg, frames, []))
    return model


def _items(
    cfg: CfgNode, frames: Iterable[Path | np.ndarray], left_out: list[str]
) -> Iterator[dict[str, Any]]:
    resize = T.AugmentationList(test_augmentations(cfg))
    count = len(frames) if isinstance(frames, Sized) else None
    used = index = 0
    bar = tqdm(frames, desc="Fitting", unit="frame", total=count, disable=not comm.is_main_process())
    for index, frame in enumerate(bar, start=1):
        if index % comm.get_world_size() != comm.get_rank():
            continue
        try:
            if isinstance(frame, np.ndarray):
                image = frame if cfg.INPUT.FORMAT == "RGB" else frame[..., ::-1]
            else:
                image = read_image({"file_name": str(frame)}, cfg.INPUT.FORMAT)
            inputs = T.AugInput(image)
            resize(inputs)
        except (OSError, ValueError) as error:
            logger.warning("Left out: %s", error)
            left_out.append(str(error))
            continue
        pixels = torch.from_numpy(np.array(inputs.image.transpose(2, 0, 1), order="C"))
        # All of it is known.
        yield {
            "image": pixels,
            "sem_seg": pixels.new_zeros(pixels.shape[1:], dtype=torch.int64),
            "index": index,
        }
        used += 1
    if not used and comm.get_world_size() == 1:
        raise ValueError(f"no frame to fit the detector to: none of {index} could be read")


def run(args: argparse.Namespace) -> int:
    """Fit what the arguments say (see ``gmm_anomaly.verbs``) and write the detector's file; the exit status
    is 1 if a frame could not be read."""
    keep_freed_memory()
    left_out: list[str] = []
    device = ["MODEL.DEVICE", args.device] if args.device else []
    if args.outliers:
        device += ["MODEL.OUTLIER.NAME", "gmm", "INPUT.OUTLIERS.SOURCE", args.outliers]
    cfg = build_config(args.config_file, [*device, *args.opts])
    files = frame_files(args.folder)
    model = fit_detector(cfg, files, left_out)
    save_model(cfg, model, args.out)
    print(
        f"{args.out}: a detector fitted to {args.folder}. Next: gmm-anomaly predict IMAGE --weights "
        f"{args.out} --out DIR"
    )
    return 1 if left_out else 0
