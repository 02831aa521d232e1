#!/usr/bin/env python
"""Write a submission to SegmentMeIfYouCan: one HDF5 file of float16 scores per frame, in its layout.

An interrupted run goes on where it stopped. Every file is read back after it is written.
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from tabulate import tabulate
from torch import nn

from gmm_anomaly.data import SegmentationMapper
from gmm_anomaly.engine import Checkpointer, Trainer, build_config, inference_config
from gmm_anomaly.engine.weights import add_trust_argument, trust_pickles
from gmm_anomaly.evaluation.submission import Frame, Submission, file_digest, file_problem, list_frames

DEFAULT_DATASETS = ("road_anomaly21_all", "road_obstacle21_all")


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--config-file", required=True, metavar="FILE", help="config the model was trained with"
    )
    arguments.add_argument(
        "--weights", metavar="FILE", help="checkpoint; default: the config's MODEL.WEIGHTS"
    )
    arguments.add_argument(
        "--output", type=Path, default=Path("output/smiyc"), help="folder that will hold outputs/"
    )
    arguments.add_argument(
        "--method", required=True, metavar="NAME", help="the method's name in the benchmark"
    )
    arguments.add_argument(
        "--score", metavar="NAME[+POST...]",
        help="score to submit, with the post-processes after it, as results.json names it; default: the "
        "first of TEST.SCORES",
    )  # fmt: skip
    arguments.add_argument(
        "--dataset", action="append", metavar="NAME[=FOLDER]",
        help="registered data set, and the benchmark's folder for it where its name does not tell (may be "
        f"repeated); default: {', '.join(DEFAULT_DATASETS)}",
    )  # fmt: skip
    arguments.add_argument(
        "--offset", type=float, default=0.0,
        help="(score - OFFSET) / SCALE is stored, one pair for every frame. Not needed unless scores exceed "
        "65504; but float16 keeps 11 bits, so scores near 0 are told apart best",
    )  # fmt: skip
    arguments.add_argument("--scale", type=float, default=1.0, help="see --offset; above 0")
    arguments.add_argument("--overwrite", action="store_true", help="begin a submission of this name anew")
    arguments.add_argument(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip
    add_trust_argument(arguments)
    arguments.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return arguments


def predictions(
    cfg: CfgNode, scorer: nn.Module, score: str, records: Sequence[Mapping[str, Any]]
) -> Iterator[np.ndarray]:
    """Score maps of the records, in their order."""
    loader = build_detection_test_loader(
        list(records), mapper=SegmentationMapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    for batch in loader:
        with torch.no_grad():
            outputs = scorer(batch)
        for output in outputs:
            yield output["anomaly_scores"][score].float().cpu().numpy()


def identity(cfg: CfgNode, score: str) -> dict[str, Any]:
    """What decides the scores: two runs that agree in it may share a submission."""
    kept = {key: yaml.safe_load(cfg[key].dump()) for key in ("MODEL", "INPUT")}
    for key in ("WEIGHTS", "DEVICE"):  # the file's content counts, not where it or the model lies
        del kept["MODEL"][key]
    kept["TEST"] = {key: cfg.TEST[key] for key in ("SCORE_ON", "MAX_WHOLE_PIXELS")}
    kept["TEST"] |= {key: yaml.safe_load(cfg.TEST[key].dump()) for key in ("SLIDING_WINDOW", "AUG")}
    # A pretrained mask model has no file; the config names it.
    digest = file_digest(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    return {"score": score, "weights_sha256": digest, "config": kept}


def run(args: argparse.Namespace) -> None:
    trust_pickles(args.trust_pickle)
    for path in args.register:
        runpy.run_path(path)
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    overrides = [*args.opts, *weights]
    score = args.score or build_config(args.config_file, overrides).TEST.SCORES[0]
    name, *chain = score.split("+")
    overrides += ["TEST.SCORES", str([name]), "TEST.POSTPROCESS", str(chain)]
    cfg = build_config(args.config_file, overrides)
    if not Path(cfg.MODEL.WEIGHTS).is_file() and not cfg.MODEL.MASK2FORMER.WEIGHTS:
        raise FileNotFoundError(
            f"--weights: no file {cfg.MODEL.WEIGHTS!r}; it must be a trained model's checkpoint"
        )

    named = [name.partition("=")[::2] for name in args.dataset or DEFAULT_DATASETS]
    made_from = identity(cfg, score)
    submission = Submission(args.output, args.method, made_from, args.offset, args.scale)
    frames = {name: list_frames(submission, name, folder or None) for name, folder in named}
    submission.begin([frame for group in frames.values() for frame in group], overwrite=args.overwrite)

    model = Trainer.build_model(inference_config(cfg))
    Checkpointer(model).load_for_evaluation(cfg.MODEL.WEIGHTS)
    scorer = model.eval()
    report = {}
    for name, group in frames.items():
        predict = partial(predictions, cfg, scorer, score)
        written = submission.write(group, predict, progress=name)
        report[name] = vars(written) | {"folder": group[0].target.parent.name, "bytes": check(group)}
    submission.finish({"weights": cfg.MODEL.WEIGHTS, "datasets": report})
    rows = [
        [
            name, found["folder"], found["frames"], found["kept"], found["written"],
            f"{found['bytes'] / 2**20:.1f}",
            f"{found['lowest']:.5g} to {found['highest']:.5g}" if found["written"] else "-",
        ]
        for name, found in report.items()
    ]  # fmt: skip
    headers = ["data set", "folder", "frames", "there before", "written", "MiB", "scores written"]
    print(tabulate(rows, headers, tablefmt="github"))
    print(
        f"\nEvery file was read back. Submit {submission.folder('')}; {submission.manifest} says what it was "
        "made from."
    )


def check(frames: Sequence[Frame]) -> int:
    """Bytes of all score files. Raises OSError if one is missing or damaged."""
    for frame in frames:
        problem = file_problem(frame.target, frame.size)
        if problem:
            raise OSError(f"{frame.target}: {problem}; run the command again")
    return sum(frame.target.stat().st_size for frame in frames)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
