#!/usr/bin/env python
"""Train and evaluate the published systems under equal schedules, and print them in one table.

Stop it at any time and call it again: finished runs are read, the one that was stopped goes on. With
``--held-out`` each class of CamVid that is held out is the unknown one in turn; choose scores and options by
that, never on CamVid-OOD.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]

SOFTMAX, GMM = "effnetlite0_deeplabv3plus_softmax", "effnetlite0_deeplabv3plus_gmm"
EDGES = "+boundary_suppression+dilated_smoothing"
BEST_SCORES = ("hybrid", "hybrid+dilated_smoothing", "feature_distance", "feature_distance+dilated_smoothing")
# What is done with the network of another run, and the file that it leaves.
WEIGHTS = {
    None: "model_final.pth",
    "--fit-mixture": "mixtures_final.pth",
    "--fit-feature-distance": "model_with_distances.pth",
}
METRICS = ("AP", "AUROC", "FPR95", "sIoU_gt", "PPV", "F1")


@dataclass(frozen=True)
class System:
    """One run of ``train_net.py``, and the scores to show of it, the system's own one first.

    Attributes:
        config: a file of configs/<set>, without its suffix. scores: of its results.
        how: None trains; a flag of ``WEIGHTS`` works on the network of the softmax twin's training.
    """

    config: str
    scores: tuple[str, ...]
    how: str | None = None


SYSTEMS = {
    "softmax": System(SOFTMAX, ("msp", "energy", "hybrid")),
    "prototypes": System("effnetlite0_deeplabv3plus_prototype", ("prototype_distance", "energy", "hybrid")),
    "GMMSeg": System(GMM, ("gmm_density", "hybrid")),
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
CARD = """# {decoder}, {system}

EfficientNet-Lite0, {megabytes:.1f} MB, parameters in half precision. Trained on {data} by

    python {command}

of commit {commit}, from ImageNet weights. Figures of this very file on {tests}:

{figures}

The score is the one with the best AP of the study, chosen on these frames.

    gmm-anomaly predict IMAGE... --config-file config.yaml --weights model.pth --out out

The licence of the training data holds for what was learnt from them: see datasets/README.md.
"""


def config_file(config_set: str, name: str) -> Path:
    return Path("configs") / config_set / f"{name}.yaml"


def run_once(config: Path, output: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """``train_net.py --config-file config ... OUTPUT_DIR output`` to its end, unless that was done.

    Returns:
        What ``output/run.json`` says: ``command``, ``seconds`` of all its parts together, ``finished``.

    Raises:
        SystemExit: the run failed, or the folder holds the run of another command.
    """
    command = ["train_net.py", "--config-file", str(config), *arguments, "OUTPUT_DIR", str(output)]
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
        resumed = [sys.executable, str(ROOT / command[0]), "--resume", *command[1:]]
        status = subprocess.run(resumed, cwd=ROOT).returncode
    finally:
        seconds = record["seconds"] + time.monotonic() - start
        record = {"command": command, "seconds": seconds, "finished": status == 0}
        write_json(path, record)
    if status:
        raise SystemExit(f"the run failed (exit status {status}); its log is {output}/log.txt")
    return record


def scores_of(folder: Path) -> dict[str, dict[str, Any]]:
    """{score: mIoU in percent, and its numbers on the first anomaly set} of a run's ``results.json``."""
    datasets = json.loads((folder / "results.json").read_text())["datasets"].values()
    miou = next((found["sem_seg"]["mIoU"] for found in datasets if "sem_seg" in found), None)
    found = next(found for found in datasets if "anomaly" in found)
    components = found.get("components", {})
    return {
        score: {"mIoU": miou} | {name: (numbers | components.get(score, {})).get(name) for name in METRICS}
        for score, numbers in found["anomaly"].items()
    }


def cells(args: argparse.Namespace) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Decoder, system, group (a seed or a held-out class) and overrides of each run: all systems of one seed
    before the next."""
    groups: dict[str, tuple[str, ...]] = {f"seed{seed}": ("SEED", str(seed)) for seed in args.seeds}
    if args.held_out:
        groups = {
            name: ("DATASETS.TRAIN", f"['camvid_train_without_{name}']",
                   "DATASETS.TEST", f"['camvid_val_without_{name}', 'camvid_val_unknown_{name}']")
            for name in HELD_OUT
        }  # fmt: skip
    for group, pairs in groups.items():
        for decoder in args.decoders:
            for system in args.systems:
                yield decoder, system, group, (*DECODERS[decoder], *pairs)


def run_all(args: argparse.Namespace, given: list[str], output: Path) -> list[dict[str, Any]]:
    """Results of all runs, one dict per run and score."""
    found: list[dict[str, Any]] = []
    todo = list(cells(args))
    start, made = time.monotonic(), 0
    for index, (decoder, system, group, overrides) in enumerate(todo):
        left = int((time.monotonic() - start) / made * (len(todo) - index)) if made else None
        eta = "" if left is None else f", ETA {left // 3600}:{left // 60 % 60:02d} h"
        print(f"\n[{index + 1}/{len(todo)}] {decoder}, {system}, {group}{eta}", flush=True)
        began = time.monotonic()
        folder = output / decoder.lower().replace("+", "plus") / group
        config, how = SYSTEMS[system].config, SYSTEMS[system].how
        run, arguments = folder / config, [*overrides, *given]
        if how is not None:
            run = folder / SOFTMAX / how.removeprefix("--")
            arguments = [how, *arguments, "MODEL.WEIGHTS", str(folder / SOFTMAX / WEIGHTS[None])]
        record = run_once(config_file(args.set, config), run, arguments)
        # Runs that were only read say nothing about the time of those to come.
        made += time.monotonic() - began > 5
        for score, numbers in scores_of(run).items():
            found.append(
                {"decoder": decoder, "system": system, "group": group, "score": score}
                | numbers
                | {"seconds": record["seconds"], "run": str(run.relative_to(output))}
            )
        write_json(output / "study.json", {"runs": found})
    return found


def summarised(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict per decoder, system and shown score: (mean, standard deviation or None) of each metric."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for decoder, system in dict.fromkeys((entry["decoder"], entry["system"]) for entry in found):
        for score in SYSTEMS[system].scores:
            key = (decoder, system, score)
            runs = [one for one in found if (one["decoder"], one["system"], one["score"]) == key]
            rows |= {key: runs} if runs else {}

    def spread(values: list[float | None]) -> tuple[float, float | None] | None:
        there = [value for value in values if value is not None]
        return (mean(there), stdev(there) if len(there) > 1 else None) if there else None

    return [
        {"decoder": decoder, "system": system, "score": score, "runs": len(entries)}
        | {name: spread([entry[name] for entry in entries]) for name in ("mIoU", *METRICS, "seconds")}
        for (decoder, system, score), entries in rows.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    digits = {"mIoU": 1, **dict.fromkeys(METRICS, 3), "seconds": 0}
    shown = [name for name in digits if any(row[name] for row in rows)]

    def text(value: tuple[float, float | None] | None, digits: int) -> str:
        if value is None:
            return ""
        return f"{value[0]:.{digits}f}" + ("" if value[1] is None else f" ± {value[1]:.{digits}f}")

    lines = [
        [row["decoder"], row["system"], row["score"], *(text(row[name], digits[name]) for name in shown)]
        for row in rows
    ]
    headers = ["decoder", "system", "score", *("mIoU %" if name == "mIoU" else name for name in shown)]
    return tabulate(lines, headers, "github", disable_numparse=True)


def publish_best(found: list[dict[str, Any]], output: Path) -> None:
    """The run with the best AP as a small checkpoint with its card, and its figures in half precision."""
    sys.path.insert(0, str(ROOT))
    from gmm_anomaly.engine import build_config
    from gmm_anomaly.engine.trained_model import MODEL, write_small_checkpoint

    best = max(found, key=lambda entry: entry["AP"])
    run, folder = output / best["run"], output / "best"
    cfg = build_config(str(run / "config.yaml"))
    config = write_small_checkpoint(cfg, str(run / WEIGHTS[SYSTEMS[best["system"]].how]), folder)
    print(f"\nevaluating {folder}: {best['decoder']}, {best['system']}, {best['group']}", flush=True)
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--config-file", str(config),
        "MODEL.WEIGHTS", str(folder / MODEL), "OUTPUT_DIR", str(folder),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    numbers = scores_of(folder)[best["score"]]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    shown = ("mIoU", "AP", "AUROC", "FPR95")
    figures = [[best["score"], *(f"{numbers[name]:.3f}" for name in shown)]]
    card = CARD.format(
        decoder=best["decoder"],
        system=best["system"],
        data=", ".join(cfg.DATASETS.TRAIN),
        tests=", ".join(cfg.DATASETS.TEST),
        command=shlex.join(json.loads((run / "run.json").read_text())["command"]),
        commit=commit.strip() or "unknown",
        megabytes=(folder / MODEL).stat().st_size / 1e6,
        figures=tabulate(figures, ["score", *shown], "github", disable_numparse=True),
    )
    (folder / "README.md").write_text(card)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=("camvid", "synthetic"), help="folder under configs/")
    parser.add_argument("--output", type=Path, help="default: output/<set>")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (0)")
    parser.add_argument("--decoders", nargs="+", default=["DeepLabV3+"], choices=list(DECODERS))
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="default: all that SET has")
    parser.add_argument("--held-out", action="store_true", help="unknown classes of CamVid's validation set")
    parser.add_argument("--publish", action="store_true", help="write the best model, small, to OUTPUT/best")
    words = sys.argv[1:]
    # KEY VALUE pairs for every config follow the first "--".
    own = (words + ["--"]).index("--")
    args, overrides = parser.parse_args(words[:own]), words[own + 1 :]
    if args.held_out and args.set != "camvid":
        parser.error("--held-out: only camvid has data sets with a class held out")
    there = [name for name in SYSTEMS if (ROOT / config_file(args.set, SYSTEMS[name].config)).is_file()]
    args.systems = args.systems or there
    name = args.set + "_held_out" * args.held_out
    output = (args.output or ROOT / "output" / name).resolve()
    found = run_all(args, overrides, output)
    rows = summarised(found)
    write_json(output / "study.json", {"runs": found, "table": rows})
    if args.publish:
        publish_best(found, output)
    print(f"\n{name}: known classes (mIoU), anomalous pixels and components; seconds of the whole run")
    print(table(rows))
    print(f"\nThe same in {output}/study.json; overlays, logs, checkpoints and all scores beside it")


if __name__ == "__main__":
    main()
