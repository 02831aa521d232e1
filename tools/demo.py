#!/usr/bin/env python
"""Train a GMM segmentor and its softmax twin on the synthetic streets, and print them side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from finished_run import ROOT, anomaly_numbers, closed_set_miou, finished_run
from tabulate import tabulate

CLASSIFIERS = ("gmm", "softmax")
METRICS = ("AP", "AUROC", "FPR95")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--set", default="synthetic", choices=("synthetic", "camvid"), help="folder under configs/"
    )
    parser.add_argument("--output", type=Path, default=None, help="default: output/<set>")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both configs")
    args = parser.parse_args()
    output = (args.output or ROOT / "output" / args.set).resolve()
    table = []
    for classifier in CLASSIFIERS:
        name = f"effnetlite0_deeplabv3plus_{classifier}"
        results = finished_run(
            ROOT / "configs" / args.set / f"{name}.yaml", output / name, args.overrides
        ).results
        for score, numbers in anomaly_numbers(results).items():
            table.append(
                [classifier, score, closed_set_miou(results), *(numbers[metric] for metric in METRICS)]
            )
    headers = ["classifier", "score", "mIoU %", *METRICS]
    print(f"\n{args.set}: known classes (mIoU) and anomalies (pooled over all pixels)")
    print(tabulate(table, headers, floatfmt=("", "", ".1f", ".3f", ".3f", ".3f"), tablefmt="github"))
    print(f"\nOverlays, logs, checkpoints and results.json of both are in {output}")


if __name__ == "__main__":
    main()
