#!/usr/bin/env python
"""Train and evaluate the published systems on one pair of data sets, and print them in one table.

A run that is finished is read, one that was stopped goes on: call it again after a stop.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from finished_run import ROOT, FinishedRun, anomaly_numbers, closed_set_miou
from systems import SYSTEMS, System, run_system
from tabulate import tabulate

COMPARED = ("softmax", "GMMSeg", "GMM4AnomalySeg", "PAnS", "fitted mixtures")
METRICS = {"AP": "AP", "AUROC": "AUROC", "FPR95": "FPR95", "sIoU_gt": "sIoU", "PPV": "PPV", "F1": "F1"}


def rows(name: str, system: System, finished: FinishedRun) -> list[dict[str, Any]]:
    """One row per score: mIoU in percent, the other metrics in [0, 1], seconds of the whole run."""
    numbers = anomaly_numbers(finished.results)
    return [
        {
            "system": name,
            "score": score,
            "mIoU": closed_set_miou(finished.results),
            **{title: numbers[score].get(metric) for metric, title in METRICS.items()},
            "protocol": numbers[score]["protocol"],
            "track": numbers[score].get("track"),
            "seconds": finished.seconds,
        }
        for score in system.scores
    ]


def table(found: list[dict[str, Any]]) -> str:
    columns = ["system", "score", "mIoU", *METRICS.values(), "seconds"]
    formats = ("", "", ".1f", *[".3f"] * len(METRICS), ".0f")
    cells = [[row[column] for column in columns] for row in found]
    return tabulate(cells, ["mIoU %" if c == "mIoU" else c for c in columns], "github", floatfmt=formats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--set", default="synthetic", choices=("synthetic", "camvid"), help="folder under configs/"
    )
    parser.add_argument("--output", type=Path, default=None, help="default: output/<set>")
    parser.add_argument(
        "--systems", nargs="+", default=list(COMPARED), choices=COMPARED, help="default: all of them"
    )
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="-- KEY VALUE pairs for every config")
    args = parser.parse_args()
    output = (args.output or ROOT / "output" / args.set).resolve()
    overrides = [word for word in args.overrides if word != "--"]
    found: list[dict[str, Any]] = []
    for name in args.systems:
        found += rows(name, SYSTEMS[name], run_system(SYSTEMS[name], args.set, output, overrides)[0])
    target = output / "compare.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(temporary, target)
    print(f"\n{args.set}: known classes (mIoU), anomalous pixels and components; seconds of the whole run")
    print(table(found))
    print(f"\nThe same in {target}; overlays, logs, checkpoints and every score's numbers beside it")


if __name__ == "__main__":
    main()
