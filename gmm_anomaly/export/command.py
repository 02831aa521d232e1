"""The command tools/export.py."""

from __future__ import annotations

import argparse
import json
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmm_anomaly.compat import silence_import_warnings
from gmm_anomaly.engine.weights import add_trust_argument, trust_pickles

if TYPE_CHECKING:
    from .job import Exported

FORMATS = ("onnx", "torchscript", "torch-export")
INPUT_TYPES = ("uint8", "float32")

DESCRIPTION = """Export a trained model: image in, segmentation and anomaly score out.

Normalisation, channel order, padding and the score are inside the file, and its metadata holds class names,
palette, score, threshold, version and what an image must be. At the end the file runs on real images beside
PyTorch: above a relative error of 1e-3 it is refused and not written. FILE.json keeps what was found.

Exit status: 0; 1 after an error or a refusal; 2 for a bad argument or config.
"""


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--config-file", required=True, metavar="FILE",
        help="a config of the repository, or the config.yaml beside a trained checkpoint",
    )  # fmt: skip
    arguments.add_argument("--weights", metavar="FILE", help="default: the config's MODEL.WEIGHTS")
    arguments.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    arguments.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    arguments.add_argument(
        "--score", metavar="NAME", help="which score of the model; default: the first of TEST.SCORES"
    )
    arguments.add_argument(
        "--size", type=image_size, metavar="HxW",
        help="fix height and width, such as 512x1024; default: any, where the network allows that",
    )  # fmt: skip
    arguments.add_argument(
        "--input-type", choices=INPUT_TYPES, default="uint8", help="of the image, 0 to 255 (uint8)"
    )
    arguments.add_argument(
        "--threshold-file", metavar="FILE", help="one that `gmm-anomaly predict --calibrate-on` wrote"
    )
    arguments.add_argument(
        "--images", metavar="DIR_OR_DATASET",
        help="what to check with: a folder, file, pattern or registered data set; default: synthetic streets",
    )  # fmt: skip
    arguments.add_argument("--num-images", type=int, default=4, metavar="N", help="how many of them (4)")
    arguments.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds of the timing (5)")
    arguments.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments.add_argument(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip
    add_trust_argument(arguments)
    arguments.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="for the config")
    return arguments


def image_size(text: str) -> tuple[int, int]:
    """Height and width of "512x1024"."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 512x1024, found {text!r}") from None
    if min(height, width) < 2:
        raise argparse.ArgumentTypeError(f"expected a height and width of 2 or more, found {text!r}")
    return height, width


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 after an error or a refusal, 2 for a config that cannot be one; argparse leaves with
    2."""
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.num_images < 1 or args.repeats < 1:
        arguments.error("--num-images and --repeats must be at least 1")
    silence_import_warnings()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if args.format == "onnx":
            # Before a model is built.
            from .packages import require_onnx

            require_onnx()
        found = _run(args)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        from gmm_anomaly.engine.config_merge import ConfigError

        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(json.dumps(summary(found), indent=2) if args.json else report(found))
    return 0


def _run(args: argparse.Namespace) -> Exported:
    from gmm_anomaly.evaluation.files import save_json
    from gmm_anomaly.predictor import AnomalyPredictor

    from .images import find_images
    from .job import export

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
    save_json(args.out.with_name(f"{args.out.name}.json"), summary(found))
    return found


def summary(found: Exported) -> dict[str, Any]:
    """Everything that is known about the file, as plain values."""
    from dataclasses import asdict

    import torch

    from .checking import MAX_ERROR

    return {
        "file": str(found.file),
        "format": found.format,
        "bytes": found.file.stat().st_size,
        "metadata": asdict(found.metadata),
        "fixed_size": found.size,
        "fixed_because": found.reason,
        "limit": MAX_ERROR,
        "max_relative_error": found.worst.relative,
        "checks": [asdict(comparison) for comparison in found.comparisons],
        "timed_size": found.timed_size,
        "threads": torch.get_num_threads(),
        "milliseconds": {
            name: {part: 1000 * value for part, value in timing._asdict().items()}
            for name, timing in found.seconds.items()
        },
    }


def report(found: Exported) -> str:
    """The summary for a person."""
    import torch
    from tabulate import tabulate

    worst = found.worst
    size = "any height and width" if found.size is None else f"{found.size[0]}x{found.size[1]} only"
    lines = [f"{found.file}: {found.file.stat().st_size / 1e6:.1f} MB, {size}, any batch"]
    if found.reason:
        lines.append(f"size fixed: {found.reason}")
    rule = found.metadata.input_rule
    if rule["resize_shorter_side"]:
        lines.append(
            f"resize images to a shorter side of {rule['resize_shorter_side']} first, as the config does "
            "(INPUT.MIN_SIZE_TEST): that is not part of the file"
        )
    checks = [
        ["x".join(map(str, check.batch)), check.absolute, check.relative, f"{check.classes:.2%}"]
        for check in found.comparisons
    ]
    lines += ["", tabulate(checks, ["images", "max error", "relative", "other class"], floatfmt=".2e")]
    times = [[name, *(1000 * seconds for seconds in timing)] for name, timing in found.seconds.items()]
    threads = torch.get_num_threads()
    lines += [
        "",
        f"milliseconds for one image of {found.timed_size[0]}x{found.timed_size[1]}, {threads} thread(s):",
        tabulate(times, ["", "median", "shortest", "longest"], floatfmt=".1f"),
        "",
        f"max error {worst.absolute:.3g}, relative {worst.relative:.3g} (limit 1e-3)",
    ]
    return "\n".join(lines)
