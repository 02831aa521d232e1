"""The table of a study, and what it is to show: mixtures against their softmax twin."""

from __future__ import annotations

from itertools import product
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

METRICS = ("AP", "AUROC", "FPR95")
# Mixtures, their scores that are to win, and the softmax twin under the same options.
TWINS = (
    ("GMMSeg", ("gmm_density", "hybrid"), "softmax"),
    ("GMMSeg (best)", ("hybrid", "hybrid+dilated_smoothing"), "softmax (best)"),
)


def summarised(found: list[dict[str, Any]], scores: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """One dict per decoder, system and score: (mean, standard deviation or None) of each metric.

    Args:
        found: one dict per run and score. scores: which of them to take, by system.
    """
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in found:
        if entry["score"] in scores[entry["system"]]:
            rows.setdefault((entry["decoder"], entry["system"], entry["score"]), []).append(entry)
    return [
        {"decoder": decoder, "system": system, "score": score, "runs": len(entries)}
        | {metric: spread([entry[metric] for entry in entries]) for metric in ("mIoU", *METRICS)}
        for (decoder, system, score), entries in rows.items()
    ]


def spread(values: list[float]) -> tuple[float, float | None]:
    return mean(values), stdev(values) if len(values) > 1 else None


def table(rows: list[dict[str, Any]]) -> str:
    def text(value: tuple[float, float | None], digits: int) -> str:
        return f"{value[0]:.{digits}f}" + ("" if value[1] is None else f" ± {value[1]:.{digits}f}")

    cells = [
        [row["decoder"], row["system"], row["score"], text(row["mIoU"], 1)]
        + [text(row[metric], 3) for metric in METRICS]
        for row in rows
    ]
    return tabulate(
        cells, ["decoder", "system", "score", "mIoU %", *METRICS], "github", disable_numparse=True
    )


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the mixtures are to show against their softmax twin, per decoder, with the figures."""
    means = {(row["decoder"], row["system"], row["score"]): row for row in rows}
    said = []
    for decoder, (system, scores, twin) in product(dict.fromkeys(row["decoder"] for row in rows), TWINS):
        msp, energy = (means.get((decoder, twin, score)) for score in ("msp", "energy"))
        for score in scores:
            ours = means.get((decoder, system, score))
            if not (msp and energy and ours):
                continue
            ap, fpr, miou = (ours[metric][0] for metric in ("AP", "FPR95", "mIoU"))
            checks = (
                ("mIoU at most 0.5 below the twin's", miou, msp["mIoU"][0] - 0.5),
                ("AP at least twice the twin's MSP", ap, 2 * msp["AP"][0]),
                ("AP above the twin's energy", ap, energy["AP"][0]),
                # Lower is better.
                ("FPR95 at most 0.6 of the twin's MSP", fpr, 0.6 * msp["FPR95"][0]),
            )
            for check, value, bound in checks:
                holds = value <= bound if check.startswith("FPR95") else value >= bound
                said.append(
                    {"decoder": decoder, "system": system, "score": score, "check": check}
                    | {"found": value, "bound": bound, "holds": holds}
                )
    return said
