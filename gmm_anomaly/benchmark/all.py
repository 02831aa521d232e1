"""Every subject that compares speeds, one after the other, each with its own defaults."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

PARTS = ("density", "em", "metrics", "train", "infer")
# They run on the processor, and take no --device.
ON_PROCESSOR = ("metrics",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help='"cpu" (default), or "cuda"')


def run(args: argparse.Namespace) -> dict[str, Any]:
    results = {}
    for name in PARTS:
        subject = importlib.import_module(f"gmm_anomaly.benchmark.{name}")
        parser = argparse.ArgumentParser(prog=name)
        subject.add_arguments(parser)
        device = [] if name in ON_PROCESSOR else ["--device", args.device]
        results[name] = subject.run(parser.parse_args(device, argparse.Namespace(repeats=args.repeats)))
        print(flush=True)
    return {"settings": {"device": args.device, "repeats": args.repeats}, "results": results}
