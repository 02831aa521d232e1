#!/usr/bin/env python
"""Measure a part of the project: ``python tools/benchmark.py metrics``; ``--help`` lists the subjects."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.benchmark.timing import write_json  # noqa: E402

# Each is a module of gmm_anomaly.benchmark, imported only when it is asked for.
SUBJECTS = {
    "density": "class densities of pixels against the broadcast formula and a bare matrix product",
    "em": "a step of assignment, memory and EM for all classes against loops over classes and components",
    "metrics": "pixel metrics against scikit-learn, component metrics against plain loops, cost of a frame",
    "train": "one training iteration of the gmm classifier against its softmax twin's",
    "memory": "resident memory over 2000 training iterations and 500 evaluated frames, and its slope",
    "infer": "one inference with the gmm classifier against its softmax twin, on logits and on features",
    "scaling": "training in one and two processes here, bytes that travel, and a model for up to eight",
    "all": "density, em, metrics, train and infer one after the other, each with its defaults",
}
RUN_ONCE = ("memory",)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    given = sys.argv[1:] if arguments is None else arguments
    for name, what in SUBJECTS.items():
        subject = subjects.add_parser(name, help=what, description=what)
        if name not in RUN_ONCE:
            subject.add_argument(
                "--repeats", type=int, default=3, help="rounds that count, after one to warm up"
            )
        subject.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
        if name in given:
            importlib.import_module(f"gmm_anomaly.benchmark.{name}").add_arguments(subject)
    args = parser.parse_args(given)
    if args.subject not in RUN_ONCE and args.repeats < 1:
        parser.error(f"--repeats must be at least 1, found {args.repeats}")
    results = importlib.import_module(f"gmm_anomaly.benchmark.{args.subject}").run(args)
    if args.json:
        write_json(args.json, {"subject": args.subject, **results})
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
