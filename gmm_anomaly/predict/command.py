"""The command `gmm-anomaly predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gmm_anomaly.weight_files import add_trust_argument

from . import MIN_AREA

DESCRIPTION = """Predict anomalies in images and videos.

Writes into --out: overlays/, segmentation/ and, if asked for, scores/ and components/ for images; videos/ for
videos, with a line of JSON per frame. A threshold makes pixels anomalous: give --threshold-on,
--threshold-file or --threshold; without one there are heat maps only.

Exit status: 0; 1 after an error, or if an input could not be read (the others are predicted); 2 for a bad
argument or config.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes; imports nothing heavy."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT",
        help="image, video, folder of these, or a pattern in quotes ('**' goes into subfolders)")  # fmt: skip
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config", required=True, metavar="FILE",
        help="a config of the repository, or the config.yaml beside a trained checkpoint",
    )  # fmt: skip
    model.add_argument("--weights", metavar="FILE", help="checkpoint; default: the config's MODEL.WEIGHTS")
    model.add_argument(
        "--score", metavar="NAME[+POST...]",
        help="which of TEST.SCORES, with post-processes after it; default: the first, as it is",
    )  # fmt: skip
    model.add_argument("--device", help="cpu, cuda or cuda:N; default: the config's")
    model.add_argument("--batch-size", type=int, default=1, metavar="N", help="images of one size at a time")
    model.add_argument("--half", action="store_true", help="half precision: float16, on the CPU bfloat16")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    output.add_argument(
        "--save-score", choices=("npy", "png16"),
        help="raw scores as float32 .npy, or as 16-bit .png with scale and offset in its text chunks",
    )  # fmt: skip
    output.add_argument(
        "--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="scores of the darkest and brightest colour; default: those of the threshold's data set, else "
        "those of the first image, for all that follow",
    )  # fmt: skip
    output.add_argument("--json", action="store_true", help="print a summary as JSON")
    anomalies = parser.add_argument_group("anomalies")
    threshold = anomalies.add_mutually_exclusive_group()
    threshold.add_argument(
        "--threshold-on", "--calibrate-on", metavar="DATASET",
        help="find the threshold on the known pixels of a registered data set with labels, and write it to "
        "threshold.json in --out",
    )  # fmt: skip
    threshold.add_argument("--threshold-file", metavar="FILE", help="one that --threshold-on wrote")
    threshold.add_argument("--threshold", type=float, metavar="X", help="a score: above it is anomalous")
    anomalies.add_argument(
        "--target-fpr", type=float, metavar="RATE",
        help="with --threshold-on: the share of known pixels that may be called anomalous (0.05)",
    )  # fmt: skip
    anomalies.add_argument(
        "--min-area", type=int, default=MIN_AREA, metavar="N", help=f"smallest anomaly in pixels ({MIN_AREA})"
    )
    add("--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)")  # fmt: skip
    add_trust_argument(parser)
    add("--opts", nargs=argparse.REMAINDER, default=[],
        help="KEY VALUE pairs for the config; comes last")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Predict what the arguments say, and print a summary.

    Returns:
        Exit status: 0; 1 after an error, or with inputs that could not be read; 2 for a config that cannot be
        one; 130 if interrupted.

    Raises:
        argparse.ArgumentError: arguments that contradict each other.
    """
    rate_alone = args.target_fpr is not None and not args.threshold_on
    args.target_fpr = 0.05 if args.target_fpr is None else args.target_fpr
    for wrong, message in (
        (not (args.inputs or args.threshold_on), "nothing to predict: give images, videos or folders"),
        (rate_alone, "--target-fpr needs a data set: --threshold-on DATASET"),
        (not 0 < args.target_fpr < 1, "--target-fpr: expected a share between 0 and 1, such as 0.05"),
        (args.batch_size < 1 or args.min_area < 0, "--batch-size must be at least 1, --min-area at least 0"),
        (args.range and not args.range[0] < args.range[1], "--range: LOW must be below HIGH"),
    ):
        if wrong:
            raise argparse.ArgumentError(None, message)
    import torch

    from gmm_anomaly.engine.config_merge import ConfigError

    from .job import predict_sources

    try:
        return predict_sources(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except torch.OutOfMemoryError as error:
        print(
            f"error: the GPU's memory is not enough ({str(error).splitlines()[0]}); try a smaller "
            "--batch-size, --half, --device cpu, or --opts TEST.SLIDING_WINDOW.ENABLED True",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is in the folder is whole", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    from gmm_anomaly.compat import silence_import_warnings

    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    silence_import_warnings()
    try:
        return run(args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
