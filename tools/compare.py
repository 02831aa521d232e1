#!/usr/bin/env python
"""Train and evaluate the published systems on one pair of data sets, and print them in one table.

A run that is finished is read, one that was stopped goes on: call it again after a stop.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finished_run import ROOT, FinishedRun, anomaly_numbers, closed_set_miou, finished_run
from tabulate import tabulate

SOFTMAX = "effnetlite0_deeplabv3plus_softmax"
GMM = "effnetlite0_deeplabv3plus_gmm"
EDGES = "+boundary_suppression+dilated_smoothing"
METRICS = {"AP": "AP", "AUROC": "AUROC", "FPR95": "FPR95", "sIoU_gt": "sIoU", "PPV": "PPV", "F1": "F1"}


@dataclass(frozen=True)
class System:
    """A row or more of the table: one run, and the scores to show of it, the system's own one first."""

    config: str
    scores: tuple[str, ...]
    onto: str | None = None  # the run whose network gets mixtures, instead of a training


SYSTEMS = {
    "softmax": System(SOFTMAX, ("msp", "energy", "hybrid")),
    "GMMSeg": System(GMM, ("gmm_density", "hybrid")),
    "GMM4AnomalySeg": System(
        "effnetlite0_deeplabv3plus_gmm4anomaly",
        (f"gmm_density{EDGES}", "gmm_density", f"hybrid{EDGES}"),
    ),
    "PAnS": System("effnetlite0_psp_pans", ("prototype_distance",)),
    "fitted mixtures": System(GMM, ("gmm_density", "hybrid"), onto=SOFTMAX),
}


def run(system: System, config_set: str, output: Path, overrides: list[str]) -> FinishedRun:
    config = ROOT / "configs" / config_set / f"{system.config}.yaml"
    if system.onto is None:
        return finished_run(config, output / system.config, overrides)
    network = output / system.onto
    weights = ["MODEL.WEIGHTS", str(network / "model_final.pth")]
    return finished_run(config, network / "mixtures", ["--fit-mixture", *overrides, *weights])


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
        "--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), help="default: all of them"
    )
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="-- KEY VALUE pairs for every config")
    args = parser.parse_args()
    output = (args.output or ROOT / "output" / args.set).resolve()
    overrides = [word for word in args.overrides if word != "--"]
    found: list[dict[str, Any]] = []
    for name in args.systems:
        found += rows(name, SYSTEMS[name], run(SYSTEMS[name], args.set, output, overrides))
    target = output / "compare.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(temporary, target)
    print(f"\n{args.set}: known classes (mIoU), anomalous pixels and components; seconds of the whole run")
    print(table(found))
    print(f"\nThe same in {target}; overlays, logs, checkpoints and every score's numbers beside it")


if __name__ == "__main__":
    main()
