#!/usr/bin/env python
"""The study of accuracy: classifiers x decoders x seeds under equal schedules, every finished run kept.

Stop it at any time and call it again: finished runs are read, the one that was stopped goes on. With
``--held-out`` each class of CamVid that is held out is the unknown one in turn; choose scores and options by
that, never on CamVid-OOD.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finished_run import ROOT, anomaly_numbers, closed_set_miou
from study_table import METRICS, summarised, table, verdicts
from systems import SYSTEMS, run_system
from tabulate import tabulate

sys.path.insert(0, str(ROOT))

from gmm_anomaly.benchmark.timing import write_json  # noqa: E402

STUDIED = (
    "softmax", "prototypes", "GMMSeg", "GMM4AnomalySeg", "fitted mixtures", "softmax (best)", "GMMSeg (best)",
)  # fmt: skip
DECODERS = {
    "DeepLabV3+": (),
    "SegFormer": (
        "MODEL.TIMM.OUT_INDICES", "[1, 2, 3, 4]", "MODEL.DECODER.NAME", "SegFormerDecoder",
        "MODEL.DECODER.IN_FEATURES", "['level1', 'level2', 'level3', 'level4']",
        "MODEL.DECODER.CHANNELS", "128",
    ),
}  # fmt: skip
CARD = """# {decoder}, {system}

EfficientNet-Lite0, {megabytes:.1f} MB, parameters in half precision. Trained on {data} by

    python {command}

of commit {commit}, from ImageNet weights. Figures of this very file on {tests}:

{figures}

The score is the one with the best AP of the study, chosen on these frames.

    gmm-anomaly predict IMAGE... --config config.yaml --weights model.pth --out out

The licence of the training data holds for what was learnt from them: see datasets/README.md.
"""
HELD_OUT = ("bicyclist", "signsymbol", "fence")


@dataclass(frozen=True)
class Cell:
    """One run of the study: the row it belongs to, and how it is made."""

    decoder: str
    system: str
    group: str  # a seed, or a held-out class
    overrides: tuple[str, ...]


def cells(args: argparse.Namespace, given: list[str]) -> Iterator[Cell]:
    """Runs in the order in which the table fills evenly: all systems of one seed before the next."""
    groups: dict[str, tuple[str, ...]]
    if args.held_out:
        groups = {name: held_out(name) for name in HELD_OUT}
    else:
        groups = {f"seed{seed}": ("SEED", str(seed)) for seed in args.seeds}
    for group, pairs in groups.items():
        for decoder in args.decoders:
            for system in args.systems:
                yield Cell(decoder, system, group, (*DECODERS[decoder], *pairs, *given))


def held_out(name: str) -> tuple[str, ...]:
    """Overrides that make a class unknown; a class that is never seen has no mixture."""
    tests = f"['camvid_val_without_{name}', 'camvid_val_unknown_{name}']"
    return (
        "DATASETS.TRAIN", f"['camvid_train_without_{name}']", "DATASETS.TEST", tests,
    )  # fmt: skip


def run_all(todo: list[Cell], config_set: str, output: Path) -> list[dict[str, Any]]:
    """Results of all runs, one dict per run and score."""
    found: list[dict[str, Any]] = []
    start, made = time.monotonic(), 0
    for index, cell in enumerate(todo):
        left = (time.monotonic() - start) / made * (len(todo) - index) if made else None
        eta = "" if left is None else f", ETA {int(left) // 3600}:{int(left) // 60 % 60:02d} h"
        print(f"\n[{index + 1}/{len(todo)}] {cell.decoder}, {cell.system}, {cell.group}{eta}", flush=True)
        began = time.monotonic()
        folder = output / cell.decoder.lower().replace("+", "plus") / cell.group
        system = SYSTEMS[cell.system]
        finished, run = run_system(system, config_set, folder, cell.overrides)
        # Runs that were only read say nothing about the time of those to come.
        made += time.monotonic() - began > 5
        for score, numbers in anomaly_numbers(finished.results).items():
            found.append(
                {
                    "decoder": cell.decoder,
                    "system": cell.system,
                    "group": cell.group,
                    "score": score,
                    "mIoU": closed_set_miou(finished.results),
                    **{metric: numbers[metric] for metric in METRICS},
                    "protocol": numbers["protocol"],
                    "seconds": finished.seconds,
                    "run": str(run.relative_to(output)),
                }
            )
        write_json(output / "study.json", {"runs": found})
    return found


def publish_best(found: list[dict[str, Any]], output: Path) -> None:
    """The run with the best AP as a small checkpoint with its card, and its figures in half precision."""
    from gmm_anomaly.data.atomic import replacing
    from gmm_anomaly.engine import build_config
    from gmm_anomaly.engine.small_checkpoint import MODEL, write_small_checkpoint

    best = max(found, key=lambda entry: entry["AP"])
    run, folder = output / best["run"], output / "best"
    weights = run / SYSTEMS[best["system"]].weights
    made_by = shlex.join(json.loads((run / "run.json").read_text())["command"])
    written = folder / "README.md"
    if (
        written.is_file()
        and made_by in written.read_text()
        and written.stat().st_mtime > weights.stat().st_mtime
    ):
        print(f"\n{folder}: published before")
        return
    cfg = build_config(str(run / "config.yaml"))
    config = write_small_checkpoint(cfg, str(weights), folder)
    print(f"\nevaluating {folder}: {best['decoder']}, {best['system']}, {best['group']}", flush=True)
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--config-file", str(config),
        "MODEL.WEIGHTS", str(folder / MODEL), "OUTPUT_DIR", str(folder),
    ]  # fmt: skip
    if status := subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(f"the evaluation of {folder} failed (exit status {status})")
    results = json.loads((folder / "results.json").read_text())
    numbers = anomaly_numbers(results)[best["score"]]
    figures = [best["score"], closed_set_miou(results), *(numbers[name] for name in METRICS)]
    card = CARD.format(
        decoder=best["decoder"],
        system=best["system"],
        data=", ".join(cfg.DATASETS.TRAIN),
        tests=", ".join(cfg.DATASETS.TEST),
        command=made_by,
        commit=commit(),
        megabytes=(folder / MODEL).stat().st_size / 1e6,
        figures=tabulate(
            [figures], ["score", "mIoU %", *METRICS], "github", floatfmt=("", ".1f", ".3f", ".3f", ".3f")
        ),
    )
    with replacing(written) as temporary:
        temporary.write_text(card)


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s SET [options] [-- KEY VALUE ...]")
    parser.add_argument("set", choices=("camvid", "synthetic"), help="folder under configs/")
    parser.add_argument("--output", type=Path, default=None, help="default: output/study_<set>")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (0)")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=list(DECODERS))
    parser.add_argument(
        "--systems", nargs="+", choices=STUDIED, help="default: all that have a config in configs/SET"
    )
    parser.add_argument("--held-out", action="store_true", help="unknown classes of CamVid's validation set")
    words = sys.argv[1:]
    # What follows the first "--" is for the configs.
    own = words.index("--") if "--" in words else len(words)
    args, given = parser.parse_args(words[:own]), words[own + 1 :]
    if args.held_out and args.set != "camvid":
        parser.error("--held-out: only camvid has data sets with a class held out")
    args.systems = args.systems or [name for name in STUDIED if SYSTEMS[name].is_in(args.set)]
    if missing := [name for name in args.systems if not SYSTEMS[name].is_in(args.set)]:
        parser.error(f"--systems: configs/{args.set} has no config of {', '.join(missing)}")
    name = f"{args.set}_held_out" if args.held_out else args.set
    output = (args.output or ROOT / "output" / f"study_{name}").resolve()
    found = run_all(list(cells(args, given)), args.set, output)
    rows = summarised(found, {system: SYSTEMS[system].scores for system in STUDIED})
    said = [] if args.held_out else verdicts(rows)
    if not args.held_out:
        publish_best(found, output)
    write_json(output / "study.json", {"runs": found, "table": rows, "verdicts": said})
    print(f"\n{name}: known classes (mIoU) and anomalous pixels, pooled")
    print(table(rows))
    for verdict in said:
        word = "holds" if verdict["holds"] else "does not hold"
        print(
            f"{verdict['decoder']}, {verdict['system']}, {verdict['score']}: {verdict['check']}: {word} "
            f"({verdict['found']:.3f}, bound {verdict['bound']:.3f})"
        )
    print(f"\nThe same in {output}/study.json")


if __name__ == "__main__":
    main()
