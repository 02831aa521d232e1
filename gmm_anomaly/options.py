"""Options of the command line that verbs and train_net.py share, each spelt and explained once."""

from __future__ import annotations

import argparse
import os

# fmt: off


def add_model(parser: argparse.ArgumentParser, *, weights: bool = True, device: bool = True) -> None:
    parser.add_argument(
        "--config-file", metavar="FILE",
        help="config of the model, also by its name below configs/, or the config.yaml beside a checkpoint; "
        "default: the one that the file of --weights holds, as a detector's does",
    )
    if weights:
        parser.add_argument(
            "--weights", metavar="FILE",
            help="checkpoint; default: the config's. Without either, predict, evaluate, export and submit "
            "take the model that comes along, 'bundled'",)
    if device:
        parser.add_argument("--device", help="cpu, cuda or cuda:N; default: the config's")
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-pickle", action="store_true",
        help="read weight files that are arbitrary pickles as well, such as the .pkl files of Detectron2's "
        "model zoo. They can run any code as they are read: only for files from people you trust",)


def existing_file(text: str) -> str:
    """Of an argument; with ``~`` it may be of somebody's home."""
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--register", action="append", default=[], type=existing_file, metavar="FILE.py",
        help="Python file that registers data sets of your own, run before the config is read; repeatable",)


def add_fits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--fit-mixture", action="store_true",
        help="freeze the network in MODEL.WEIGHTS and fit mixtures onto its features by EM over the training "
        "set (MODEL.GMM.FIT_PASSES), save OUTPUT_DIR/mixtures_final.pth and config.yaml, and evaluate")
    add("--fit-feature-distance", action="store_true",
        help="fit what some scores need to know of the training set (MODEL.FEATURE_DISTANCE, sml) to the "
        "network in MODEL.WEIGHTS, save it as OUTPUT_DIR/model_with_distances.pth, and evaluate")
    add("--fit-outliers", action="store_true",
        help="paste objects (INPUT.OUTLIERS) into training images and fit MODEL.OUTLIER, by default linear, "
        "to the network in MODEL.WEIGHTS, whose distances are fitted, save it as "
        "OUTPUT_DIR/model_with_outliers.pth, and evaluate")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    """Height and width of "512x1024"."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()) or min(int(height), int(width)) < 2:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 512x1024, found {text!r}")
    return int(height), int(width)
