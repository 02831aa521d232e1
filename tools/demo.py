#!/usr/bin/env python
"""Train a GMM segmentor and its softmax twin on the synthetic streets, and print them side by side."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
CLASSIFIERS = ("gmm", "softmax")


def train(classifier: str, config_set: str, output: Path, overrides: list[str]) -> dict:
    """Train and evaluate one twin (continuing an interrupted run); returns its results.json."""
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--resume",
        "--config-file", str(ROOT / f"configs/{config_set}/effnetlite0_deeplabv3plus_{classifier}.yaml"),
        "OUTPUT_DIR", str(output), *overrides,
    ]  # fmt: skip
    print(f"$ {' '.join(command)}", flush=True)
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        raise SystemExit(
            f"training the {classifier} twin failed (exit status {status}); its log is {output}/log.txt"
        )
    return json.loads((output / "results.json").read_text())


def rows(classifier: str, results: dict) -> list[list]:
    """One row per score: twin, score, mIoU in percent, AP, AUROC and FPR95 in [0, 1]."""
    datasets = results["datasets"].values()
    miou = next(found["sem_seg"]["mIoU"] for found in datasets if "sem_seg" in found)
    table = []
    for found in datasets:
        for score, numbers in found.get("anomaly", {}).items():
            table.append([classifier, score, miou, *(numbers[metric] for metric in ("AP", "AUROC", "FPR95"))])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--set", default="synthetic", choices=("synthetic", "camvid"), help="folder under configs/"
    )
    parser.add_argument("--output", type=Path, default=None, help="default: output/<set>")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both configs")
    args = parser.parse_args()
    output = args.output or ROOT / "output" / args.set
    table = []
    for classifier in CLASSIFIERS:
        results = train(
            classifier, args.set, output / f"effnetlite0_deeplabv3plus_{classifier}", args.overrides
        )
        table += rows(classifier, results)
    headers = ["classifier", "score", "mIoU %", "AP", "AUROC", "FPR95"]
    print(f"\n{args.set}: known classes (mIoU) and anomalies (pooled over all pixels)")
    print(tabulate(table, headers, floatfmt=("", "", ".1f", ".3f", ".3f", ".3f"), tablefmt="github"))
    print(f"\nOverlays, logs, checkpoints and results.json of both are in {output}")


if __name__ == "__main__":
    main()
