#!/usr/bin/env python
"""Train and evaluate the published systems under equal schedules, and print them in one table.

Stop it at any time and call it again: finished runs are read, the one that was stopped goes on. With
``--held-out`` each class of CamVid that is held out is the unknown one in turn; choose scores and options by
that, never on CamVid-OOD. The set "demo" is a short look at everything: the bundled model's pictures, and on
rendered streets the bundled model, a detector fitted without labels and mixtures that are trained.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]

SOFTMAX, GMM = "effnetlite0_deeplabv3plus_softmax", "effnetlite0_deeplabv3plus_gmm"
EDGES = "+boundary_suppression+dilated_smoothing"
ROAD_SCORES = tuple(f"{score}+guided_filter+picture_level" for score in ("feature_distance", "hybrid"))
BEST_SCORES = ("hybrid", "hybrid+dilated_smoothing", "feature_distance", "feature_distance+dilated_smoothing")
# How a run gets its network, and the file that this leaves: by training, fitted to the training images
# without labels, with the project, or from the network of the softmax twin.
WEIGHTS = {
    None: "model_final.pth",
    "fit": "detector.pth",
    "bundled": "bundled",
    "--fit-mixture": "mixtures_final.pth",
    "--fit-feature-distance": "model_with_distances.pth",
}
METRICS = ("AP", "AUROC", "FPR95", "sIoU_gt", "PPV", "F1")


@dataclass(frozen=True)
class System:
    """One run of ``train_net.py``, and the scores to show of it, the system's own one first.

    Attributes:
        config: a file of configs/<set>, without its suffix, or the one that its model's file holds (None).
        scores: of its results. how: a key of ``WEIGHTS``; None trains.
    """

    config: str | None
    scores: tuple[str, ...]
    how: str | None = None


SYSTEMS = {
    "bundled": System(None, ROAD_SCORES, "bundled"),
    "fitted without labels": System(None, (ROAD_SCORES[0], "feature_distance"), "fit"),
    # Chosen on the benchmarks' validation frames (docs/results.md).
    "best": System("effnetlite0_deeplabv3plus_best", ROAD_SCORES),
    "softmax": System(SOFTMAX, ("msp", "energy", "hybrid")),
    "prototypes": System("effnetlite0_deeplabv3plus_prototype", ("prototype_distance", "energy", "hybrid")),
    "GMMSeg": System(GMM, ("gmm_density", "energy", "hybrid")),
    "GMM4AnomalySeg": System(f"{GMM}4anomaly", (f"gmm_density{EDGES}", "gmm_density", f"hybrid{EDGES}")),
    "PAnS": System("effnetlite0_psp_pans", ("prototype_distance",)),
    "fitted mixtures": System(GMM, ("gmm_density", "hybrid"), "--fit-mixture"),
    # What scores best on classes that were held out (docs/results.md), and its twin with the same options.
    "GMMSeg (best)": System(f"{GMM}_best", ("gmm_density", *BEST_SCORES)),
    "softmax (best)": System(f"{SOFTMAX}_best", ("msp", "energy", *BEST_SCORES), "--fit-feature-distance"),
}
DECODERS: dict[str, tuple[str, ...]] = {
    "DeepLabV3+": (),
    "SegFormer": (
        "MODEL.TIMM.OUT_INDICES", "[1, 2, 3, 4]", "MODEL.DECODER.NAME", "SegFormerDecoder",
        "MODEL.DECODER.IN_FEATURES", "['level1', 'level2', 'level3', 'level4']",
        "MODEL.DECODER.CHANNELS", "128",
    ),
}  # fmt: skip
HELD_OUT = ("bicyclist", "signsymbol", "fence")
SETS = {
    "synthetic": ("synthetic_street_train", "synthetic_street_anomaly"),
    "camvid": ("camvid_train", "camvid_ood_test"),
    "road": ("cityscapes_full_train", ""),
}
# A minute for each step on two cores.
DEMO = (
    "DATASETS.SYNTHETIC.NUM_TRAIN", "100", "DATASETS.SYNTHETIC.NUM_VAL", "25",
    "DATASETS.SYNTHETIC.NUM_ANOMALY", "30", "DATASETS.SYNTHETIC.CACHE_DIR", "output/demo/frames",
    "SOLVER.MAX_ITER", "250", "TEST.SCORES", "['hybrid', 'gmm_density', 'msp', 'energy']",
)  # fmt: skip


def config_file(config_set: str, name: str) -> Path:
    return Path("configs") / config_set / f"{name}.yaml"


def run_once(config: Path | None, output: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """``train_net.py --config-file config ... OUTPUT_DIR output`` to its end, unless that was done. Returns
    what ``output/run.json`` says: ``command``, ``seconds`` of all its parts, ``finished``."""
    named = [] if config is None else ["--config-file", str(config)]
    command = ["train_net.py", *named, *arguments, "OUTPUT_DIR", str(output)]
    path = output / "run.json"
    record = json.loads(path.read_text()) if path.is_file() else {"command": command, "seconds": 0.0}
    if record["command"] != command:
        raise SystemExit(
            f"{output} was made by another command:\n  {shlex.join(record['command'])}\nexpected:\n"
            f"  {shlex.join(command)}\nRemove the folder, or name another one with --output"
        )
    if record.get("finished") and (output / "results.json").is_file():
        print(f"{output}: finished before; remove the folder to run it again", flush=True)
        return record
    print(f"$ python {shlex.join(command)} (--resume)", flush=True)
    start, status = time.monotonic(), None
    try:
        resume = [] if "--eval-only" in command else ["--resume"]
        resumed = [sys.executable, str(ROOT / command[0]), *resume, *command[1:]]
        status = subprocess.run(resumed, cwd=ROOT).returncode
    finally:
        seconds = record["seconds"] + time.monotonic() - start
        record = {"command": command, "seconds": seconds, "finished": status == 0}
        write_json(path, record)
    if status:
        raise SystemExit(f"the run failed (exit status {status}); its log is {output}/log.txt")
    return record


def scores_of(folder: Path) -> list[dict[str, Any]]:
    """Of a run's ``results.json``: for each anomaly set and score mIoU in percent and the numbers there."""
    datasets = json.loads((folder / "results.json").read_text())["datasets"]
    miou = next((found["sem_seg"]["mIoU"] for found in datasets.values() if "sem_seg" in found), None)
    return [
        {"data": data, "score": score, "mIoU": miou}
        | {name: (numbers | found.get("components", {}).get(score, {})).get(name) for name in METRICS}
        for data, found in datasets.items()
        for score, numbers in found.get("anomaly", {}).items()
    ]


def records(config_set: str, dataset: str, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Of a data set; the synthetic streets are drawn into files."""
    sys.path.insert(0, str(ROOT))
    from gmm_anomaly.data.registration import get_records
    from gmm_anomaly.engine import build_config

    build_config(str(ROOT / config_file(config_set, GMM)), overrides)
    return get_records(dataset)


def gmm_anomaly(*words: str) -> None:
    """Run a verb of the command line, and end with it if it fails."""
    print(f"$ gmm-anomaly {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "gmm_anomaly.cli", *words], cwd=ROOT).returncode
    if status:
        raise SystemExit(f"gmm-anomaly {words[0]} failed (exit status {status})")


def untrained(config_set: str, how: str | None, overrides: Sequence[str], run: Path) -> list[str]:
    """Arguments with which the bundled model, or a detector that is fitted now, is evaluated."""
    train, test = SETS[config_set]
    weights = WEIGHTS[how]
    if how == "fit":
        weights = str(run / weights)
        if not Path(weights).is_file():
            images = Path(records(config_set, train, overrides)[0]["file_name"]).parent
            run.mkdir(parents=True, exist_ok=True)
            gmm_anomaly("fit", str(images), "--out", weights)
    # Everything else is in the model's own config.
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    streets = [word for pair in pairs if pair[0].startswith("DATASETS.SYNTHETIC") for word in pair]
    tests = ["DATASETS.TEST", f"['{test}']"] if test else []
    return ["--eval-only", "--config-file", weights, "MODEL.WEIGHTS", weights, *tests, *streets]


def run_all(args: argparse.Namespace, given: list[str], output: Path) -> list[dict[str, Any]]:
    """Results of all runs, one dict per run and score: all systems of one seed, or held-out class, before the
    next."""
    groups: dict[str, tuple[str, ...]] = {f"seed{seed}": ("SEED", str(seed)) for seed in args.seeds}
    if args.held_out:
        groups = {
            name: ("DATASETS.TRAIN", f"['camvid_train_without_{name}']",
                   "DATASETS.TEST", f"['camvid_val_without_{name}', 'camvid_val_unknown_{name}']")
            for name in HELD_OUT
        }  # fmt: skip
    found: list[dict[str, Any]] = []
    todo = list(product(groups, args.decoders, args.systems))
    start, made = time.monotonic(), 0
    for index, (group, decoder, system) in enumerate(todo):
        left = int((time.monotonic() - start) / made * (len(todo) - index)) if made else None
        eta = "" if left is None else f", ETA {left // 3600}:{left // 60 % 60:02d} h"
        print(f"\n[{index + 1}/{len(todo)}] {decoder}, {system}, {group}{eta}", flush=True)
        began = time.monotonic()
        folder = output / decoder.lower().replace("+", "plus") / group
        config, how = SYSTEMS[system].config, SYSTEMS[system].how
        run = folder / (config or system.replace(" ", "_"))
        arguments = [*DECODERS[decoder], *groups[group], *given]
        if config is None:
            arguments = untrained(args.set, how, arguments, run)
        elif how is not None:
            run = folder / SOFTMAX / how.removeprefix("--")
            arguments = [how, *arguments, "MODEL.WEIGHTS", str(folder / SOFTMAX / WEIGHTS[None])]
        record = run_once(config and config_file(args.set, config), run, arguments)
        # Runs that were only read say nothing about the time of those to come.
        made += time.monotonic() - began > 5
        cell = {"decoder": decoder, "system": system, "group": group}
        cost = {"seconds": record["seconds"], "run": str(run.relative_to(output))}
        found += [cell | entry | cost for entry in scores_of(run)]
        write_json(output / "study.json", {"runs": found})
    return found


def summarised(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict per decoder, system, shown score and data set: (mean, standard deviation or None) of each
    metric."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for decoder, system in dict.fromkeys((entry["decoder"], entry["system"]) for entry in found):
        for score in SYSTEMS[system].scores:
            key = (decoder, system, score)
            for entry in found:
                if (entry["decoder"], entry["system"], entry["score"]) == key:
                    rows.setdefault((*key, entry["data"]), []).append(entry)

    def spread(values: list[float | None]) -> tuple[float, float | None] | None:
        there = [value for value in values if value is not None]
        return (mean(there), stdev(there) if len(there) > 1 else None) if there else None

    return [
        dict(zip(("decoder", "system", "score", "data"), key, strict=True))
        | {"runs": len(entries)}
        | {name: spread([entry[name] for entry in entries]) for name in ("mIoU", *METRICS, "seconds")}
        for key, entries in rows.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    digits = {"mIoU": 1, **dict.fromkeys(METRICS, 3), "seconds": 0}
    shown = [name for name in digits if any(row[name] for row in rows)]

    def text(value: tuple[float, float | None] | None, digits: int) -> str:
        if value is None:
            return ""
        return f"{value[0]:.{digits}f}" + ("" if value[1] is None else f" ± {value[1]:.{digits}f}")

    # A column that says the same everywhere says nothing.
    names = [name for name in ("decoder", "system", "score", "data") if len({row[name] for row in rows}) > 1]
    lines = [
        [*(row[name] for name in names), *(text(row[name], digits[name]) for name in shown)] for row in rows
    ]
    headers = [*names, *("mIoU %" if name == "mIoU" else name for name in shown)]
    return tabulate(lines, headers, "github", disable_numparse=True)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=("demo", *SETS), help="folder under configs/")
    parser.add_argument("--output", type=Path, help="default: output/<set>")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (0)")
    parser.add_argument("--decoders", nargs="+", default=["DeepLabV3+"], choices=list(DECODERS))
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="default: all that SET has")
    parser.add_argument("--held-out", action="store_true", help="unknown classes of CamVid's validation set")
    parser.add_argument("--photos", nargs="*", help="with demo: pictures to score; default: streets")
    words = sys.argv[1:]
    # KEY VALUE pairs for every config follow the first "--".
    own = (words + ["--"]).index("--")
    args, overrides = parser.parse_args(words[:own]), words[own + 1 :]
    if args.held_out and args.set != "camvid":
        parser.error("--held-out: only camvid has data sets with a class held out")
    name = args.set + "_held_out" * args.held_out
    output = (args.output or ROOT / "output" / name).resolve()
    if demo := args.set == "demo":
        args.set, overrides = "synthetic", [*DEMO, *overrides]
        args.systems = args.systems or ["bundled", "fitted without labels", "GMMSeg"]
    if not args.systems:
        configs = [(name, system.config) for name, system in SYSTEMS.items()]
        there = [name for name, one in configs if not one or (ROOT / config_file(args.set, one)).is_file()]
        args.systems = there
    if demo:
        streets = records(args.set, SETS[args.set][1], overrides)
        photos = args.photos or [street["file_name"] for street in streets[:5]]
        gmm_anomaly("predict", *photos, "--out", str(output / "photos"))
    found = run_all(args, overrides, output)
    rows = summarised(found)
    write_json(output / "study.json", {"runs": found, "table": rows})
    print(f"\n{name}: known classes (mIoU), anomalous pixels and components; seconds of the whole run")
    print(table(rows))
    print(f"\nThe same in {output}/study.json; overlays, logs, checkpoints and all scores beside it")


if __name__ == "__main__":
    main()
