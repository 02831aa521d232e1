"""The command `gmm-anomaly export`."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmm_anomaly.weight_files import add_trust_argument, trust_pickles

DESCRIPTION = """Export a trained model: image in, segmentation and anomaly score out.

Normalisation, channel order, padding and the score are inside the file, and its metadata holds class names,
palette, score, threshold, version and what an image must be. At the end the file runs on real images beside
PyTorch: above a relative error of 1e-3 it is refused and not written. FILE.json keeps what was found.

Exit status: 0; 1 after an error or a refusal; 2 for a bad argument or config.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes; imports nothing heavy."""
    add = parser.add_argument
    add(
        "--config-file", "--config", required=True, metavar="FILE",
        help="a config of the repository, or the config.yaml beside a trained checkpoint",
    )  # fmt: skip
    add("--weights", metavar="FILE", help="default: the config's MODEL.WEIGHTS")
    add("--format", choices=("onnx", "torch-export"), default="onnx", help="default: onnx")
    add("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    add("--score", metavar="NAME", help="which score of the model; default: the first of TEST.SCORES")
    add(
        "--size", type=_image_size, metavar="HxW",
        help="fix height and width, such as 512x1024; default: any, where the network allows that",
    )  # fmt: skip
    add("--input-type", choices=("uint8", "float32"), default="uint8", help="of the image, 0 to 255 (uint8)")
    add("--threshold-file", metavar="FILE", help="one that `gmm-anomaly predict --threshold-on` wrote")
    add(
        "--images", metavar="DIR_OR_DATASET",
        help="what to check with: a folder, file, pattern or registered data set; default: synthetic streets",
    )  # fmt: skip
    add("--num-images", type=_positive, default=4, metavar="N", help="how many of them (4)")
    add("--repeats", type=_positive, default=5, metavar="N", help="rounds of the timing (5)")
    add("--json", action="store_true", help="print JSON instead of the table")
    add(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip
    add_trust_argument(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="for the config")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()) or min(int(height), int(width)) < 2:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 512x1024, found {text!r}")
    return int(height), int(width)


def run(args: argparse.Namespace) -> int:
    """Export what the arguments say, and print what was found.

    Returns:
        Exit status: 0; 1 after an error or a refusal; 2 for a config that cannot be one.
    """
    from gmm_anomaly.engine.config_merge import ConfigError

    try:
        found = _export(args)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(json.dumps(found, indent=2) if args.json else report(found))
    return 0


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from gmm_anomaly.evaluation.files import save_json
    from gmm_anomaly.predict.predictor import AnomalyPredictor

    from .formats import require_onnx
    from .job import export, find_images

    if args.format == "onnx":
        # Before a model is built.
        require_onnx()
    trust_pickles(args.trust_pickle)
    for path in args.register:
        runpy.run_path(path)
    images = find_images(args.images, args.num_images)
    predictor = AnomalyPredictor.from_config(
        args.config_file, args.weights, score=args.score, threshold=args.threshold_file, device="cpu",
        opts=args.opts,
    )  # fmt: skip
    found = export(
        predictor, args.out, format=args.format, images=images, size=args.size, input_type=args.input_type,
        repeats=args.repeats,
    )  # fmt: skip
    save_json(args.out.with_name(f"{args.out.name}.json"), found)
    return found


def report(found: dict[str, Any]) -> str:
    """What was found, for a person."""
    size, shorter = found["fixed_size"], found["metadata"]["input_rule"]["resize_shorter_side"]
    sizes = "any height and width" if size is None else f"{size[0]}x{size[1]} only"
    height, width = found["timed_size"]
    times = ", ".join(f"{name} {time:.1f} ms" for name, time in found["milliseconds"].items())
    lines = [
        f"{found['file']}: {found['bytes'] / 1e6:.1f} MB, {sizes}, any batch",
        f"largest relative error {found['max_relative_error']:.3g} (limit {found['limit']:g})",
        f"one image of {height}x{width} on {found['threads']} thread(s): {times}",
    ]
    if found["fixed_because"]:
        lines.append(f"size fixed: {found['fixed_because']}")
    if shorter:
        lines.append(
            f"resize images to a shorter side of {shorter} first, as the config does (INPUT.MIN_SIZE_TEST): "
            "that is not part of the file"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    from gmm_anomaly.compat import silence_import_warnings

    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    silence_import_warnings()
    return run(args)
