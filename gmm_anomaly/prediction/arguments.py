"""What `gmm-anomaly predict` takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gmm_anomaly.engine.weights import add_trust_argument

from .components import MIN_AREA

DEFAULT_FPR = 0.05
SCORE_FORMATS = ("npy", "png16")

DESCRIPTION = """Predict anomalies in images, videos or a camera's pictures.

Writes into --out: overlays/, segmentation/ and, if asked for, scores/ and components/ for images; videos/ for
videos, with a line of JSON per frame. A threshold makes pixels anomalous: give --calibrate-on,
--threshold-file or --threshold; without one there are heat maps only.

Exit status: 0; 1 after an error, or if an input could not be read (the others are predicted); 2 for a bad
argument or config.
"""


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "inputs", nargs="*", metavar="INPUT",
        help="image, video, folder of these, or a pattern in quotes ('**' goes into subfolders)",
    )  # fmt: skip
    model = arguments.add_argument_group("model")
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
    model.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images of one size at a time (1)"
    )
    model.add_argument("--half", action="store_true", help="half precision: float16, on the CPU bfloat16")
    output = arguments.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="needed but with --webcam, which it records")
    output.add_argument(
        "--save-score", choices=SCORE_FORMATS,
        help="raw scores as float32 .npy, or as 16-bit .png with scale and offset in its text chunks",
    )  # fmt: skip
    output.add_argument(
        "--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="scores of the darkest and brightest colour; default: the calibration set's, else those of the "
        "first image, for all that follow",
    )  # fmt: skip
    output.add_argument("--json", action="store_true", help="print a summary as JSON")
    anomalies = arguments.add_argument_group("anomalies")
    threshold = anomalies.add_mutually_exclusive_group()
    threshold.add_argument(
        "--calibrate-on", metavar="DATASET",
        help="find the threshold on the known pixels of a registered data set with labels, and write it to "
        "threshold.json in --out",
    )  # fmt: skip
    threshold.add_argument("--threshold-file", metavar="FILE", help="one that --calibrate-on wrote")
    threshold.add_argument("--threshold", type=float, metavar="X", help="a score: above it is anomalous")
    anomalies.add_argument(
        "--target-fpr", type=float, metavar="RATE",
        help=f"with --calibrate-on: the share of known pixels that may be called anomalous ({DEFAULT_FPR})",
    )  # fmt: skip
    anomalies.add_argument(
        "--min-area", type=int, default=MIN_AREA, metavar="N", help=f"smallest anomaly in pixels ({MIN_AREA})"
    )
    arguments.add_argument(
        "--webcam", type=int, metavar="N", help="predict camera N (0 is the first) in a window; q quits"
    )
    arguments.add_argument(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip
    add_trust_argument(arguments)
    arguments.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config; comes last"
    )
    return arguments


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments that agree with each other; otherwise argparse's error and exit status 2."""
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.webcam is not None and (args.inputs or args.save_score):
        arguments.error("--webcam takes no other inputs, and saves no scores")
    if args.webcam is None:
        if not args.inputs and not args.calibrate_on:
            arguments.error("nothing to predict: give images, videos, folders, or --webcam 0")
        if args.out is None:
            arguments.error("--out is needed: the folder to write into")
    elif args.calibrate_on and args.out is None:
        arguments.error("--calibrate-on needs --out, where threshold.json is written")
    if args.target_fpr is not None and not args.calibrate_on:
        arguments.error("--target-fpr needs a data set to find the threshold on: --calibrate-on DATASET")
    if args.target_fpr is not None and not 0 < args.target_fpr < 1:
        arguments.error(
            f"--target-fpr: expected a share between 0 and 1, such as 0.05, found {args.target_fpr}"
        )
    if args.batch_size < 1 or args.min_area < 0:
        arguments.error("--batch-size must be at least 1, --min-area at least 0")
    if args.range is not None and not args.range[0] < args.range[1]:
        arguments.error(f"--range: LOW must be below HIGH, found {args.range[0]} and {args.range[1]}")
    return args
