#!/usr/bin/env python
"""Measure a part of the project: ``python tools/benchmark.py metrics``; ``--help`` lists the subjects.

What is compared runs in turns in one process. ``KEY VALUE`` pairs of the config come last.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.compat import keep_freed_memory  # noqa: E402

# Module of tools.benchmarks, which is imported only when it is asked for; its function that adds arguments;
# what is measured. A function of the subject's name measures.
SUBJECTS = {
    "density": (
        "mixtures", "add_density_arguments",
        "class densities of pixels against the broadcast formula and a bare matrix product",
    ),
    "em": (
        "mixtures", "add_em_arguments",
        "a step of assignment, memory and EM for all classes against loops over classes and components",
    ),
    "metrics": (
        "metrics", "add_arguments",
        "pixel metrics against scikit-learn, component metrics against plain loops",
    ),
    "train": ("models", "add_arguments", "training iterations of the gmm classifier and its softmax twin"),
    "infer": (
        "models", "add_arguments",
        "one inference with the gmm classifier against its softmax twin, on logits and on features",
    ),
    "evaluate": (
        "evaluation", "add_arguments",
        "the evaluator of large frames with five scores, beside the network",
    ),
    "memory": (
        "memory", "add_arguments",
        "resident memory over 2000 training iterations and 500 evaluated frames, and its slope",
    ),
    "scaling": (
        "scaling", "add_scaling_arguments",
        "training in several processes here, and the bytes that each of them sends in an iteration",
    ),
}  # fmt: skip
ALL = ("density", "em", "metrics", "train", "infer", "evaluate")


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    everything = f"{', '.join(ALL)} one after the other, each with its defaults"
    for name, (module, add_arguments, what) in (SUBJECTS | {"all": ("", "", everything)}).items():
        subject = subjects.add_parser(name, help=what, description=what)
        subject.add_argument("--repeats", type=int, default=3, help="rounds (3)")
        subject.add_argument("--threads", type=int, default=1, help="processor threads (1)")
        subject.add_argument("--device", default="cpu", help='"cpu" (default), or "cuda"')
        subject.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
        if module and name in given:
            getattr(importlib.import_module(f"tools.benchmarks.{module}"), add_arguments)(subject)
    args = parser.parse_args(given)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, found {args.repeats}")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    # As a training does. Formulas are compared as they run in any process.
    if SUBJECTS[args.subject][0] not in ("mixtures", "metrics"):
        keep_freed_memory()
    module = importlib.import_module(f"tools.benchmarks.{SUBJECTS[args.subject][0]}")
    found: dict[str, Any] = getattr(module, args.subject)(args)
    return found


def main(arguments: list[str] | None = None) -> None:
    args = parse(sys.argv[1:] if arguments is None else arguments)
    if args.subject == "all":
        shared = ["--repeats", str(args.repeats), "--threads", str(args.threads), "--device", args.device]
        results = {name: measure(parse([name, *shared])) for name in ALL}
    else:
        results = measure(args)
    if args.json:
        from gmm_anomaly.data.atomic import replacing
        from tools.benchmarks.timing import environment

        settings = {name: value for name, value in vars(args).items() if name not in ("json", "subject")}
        settings["clock"] = "processor time" if args.device == "cpu" else "time"
        data = {"subject": args.subject, "settings": settings, "environment": environment()}
        data["results"] = results
        with replacing(args.json) as unfinished:
            unfinished.write_text(json.dumps(data, indent=2) + "\n")
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
