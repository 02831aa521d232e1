#!/usr/bin/env python
"""Score anomaly maps that any program saved: python tools/evaluate.py --scores DIR --dataset NAME."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import gmm_anomaly.data  # noqa: F401  registers the data sets
from gmm_anomaly.evaluation import format_results
from gmm_anomaly.evaluation.files import json_text, save_json
from gmm_anomaly.evaluation.results import results_document
from gmm_anomaly.evaluation.saved_scores import evaluate_saved_scores
from gmm_anomaly.metrics import PROTOCOLS

# --json without a file.
STANDARD_OUTPUT = Path("-")


def parser() -> argparse.ArgumentParser:
    rules = "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items())
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--scores", type=Path, required=True, metavar="DIR",
        help="one map per image, named as the image: .npy, .npz, .hdf5 (dataset 'value'), or 16-bit .png, of "
        "which only the ranks count (text chunks 'scale' and 'offset' are used if present)",
    )  # fmt: skip
    arguments.add_argument(
        "--dataset", required=True, metavar="NAME", help="a registered data set with labels"
    )
    arguments.add_argument(
        "--protocol", choices=list(PROTOCOLS), help=f"default: the data set's own benchmark's. {rules}"
    )
    arguments.add_argument(
        "--components", choices=("anomaly", "obstacle", "none"),
        help="component metrics with the sizes of this SegmentMeIfYouCan track; default: the data set's own",
    )  # fmt: skip
    arguments.add_argument(
        "--precision", choices=("float16", "float32"),
        help="what scores are rounded to; default: float16 under smiyc and with components, else float32",
    )  # fmt: skip
    arguments.add_argument("--method", metavar="NAME", help="name in the table; default: the folder's")
    arguments.add_argument(
        "--suffix", default="", help="what the maps' stems end with beyond the image's name"
    )
    arguments.add_argument("--key", help="name of the array in .npz and HDF5 files")
    arguments.add_argument(
        "--resize", action="store_true", help="interpolate maps of another size than the label"
    )
    arguments.add_argument(
        "--json", nargs="?", type=Path, const=STANDARD_OUTPUT, metavar="FILE",
        help="write the results there as well; without FILE they are printed as JSON instead of the table",
    )  # fmt: skip
    arguments.add_argument(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        for path in args.register:
            runpy.run_path(path)
        found = evaluate_saved_scores(
            args.scores,
            args.dataset,
            method=args.method,
            protocol=args.protocol,
            component_track=args.components,
            precision=args.precision,
            suffix=args.suffix,
            key=args.key,
            resize=args.resize,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = {args.dataset: found}
    document = results_document(results, scores=str(args.scores))
    if args.json == STANDARD_OUTPUT:
        print(json_text(document))
        return 0
    print(format_results(results))
    if args.json:
        save_json(args.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
