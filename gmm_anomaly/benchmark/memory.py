"""Memory of a long run: resident size of the process over training iterations, then over evaluated frames.

A tiny network on tiny synthetic frames, so that a leak of a few kB a step is not lost in what a batch needs;
everything else is as in a real run: loader, EM, hooks, writers, evaluators.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from torch import nn

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.engine import Trainer, build_config
from gmm_anomaly.freed_memory import keep_freed_memory

from .timing import environment

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
TINY = (
    "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.NUM_TRAIN", 50,
    "DATASETS.SYNTHETIC.NUM_VAL", 4, "INPUT.CROP.SIZE", [64, 64], "SOLVER.IMS_PER_BATCH", 2,
    "DATALOADER.NUM_WORKERS", 0, "MODEL.BACKBONE.WEIGHTS", "", "MODEL.GMM.MEMORY_SIZE", 500,
    "MODEL.FEATURE_DISTANCE.FEATURES", [],
    "TEST.SCORES", ["gmm_density", "msp"],
    "DATASETS.TEST", ("synthetic_street_anomaly",), "TEST.EVAL_PERIOD", 0, "SEED", 0,
)  # fmt: skip
# Points of (iterations or frames done, MB).
Series = list[tuple[int, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--iterations", type=int, default=2000, help="of the training (2000)")
    parser.add_argument("--frames", type=int, default=500, help="that are evaluated after it (500)")
    parser.add_argument("--points", type=int, default=20, help="of each of the two tables (20)")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw both tables there")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")


def resident_megabytes() -> float:
    """Of this process, from Linux's /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class MemoryWatch(HookBase):
    """Notes the resident size every so many iterations, and every so many frames of the evaluation.

    Attributes:
        training, evaluation: what was noted.
    """

    def __init__(self, backbone: nn.Module, *, every_iterations: int, every_frames: int) -> None:
        self.every_iterations = every_iterations
        self.every_frames = every_frames
        self.training: Series = []
        self.evaluation: Series = []
        self._frames = 0
        # Not the model's: evaluators call its parts.
        backbone.register_forward_hook(self._count_frames)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.every_iterations == 0:
            self._note(self.training, done, "iterations")

    def _count_frames(self, *_: object) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return
        self._frames += 1
        if self._frames % self.every_frames == 0:
            self._note(self.evaluation, self._frames, "frames")

    def _note(self, series: Series, done: int, what: str) -> None:
        series.append((done, resident_megabytes()))
        print(f"{done:6d} {what:10s} {series[-1][1]:8.1f} MB resident", flush=True)


def slope(series: Series) -> float:
    """kB a step, by least squares over the second half: the first fills caches, pools and the mixtures."""
    steps, megabytes = np.array(series[len(series) // 2 :], dtype=float).T
    return float(np.polyfit(steps, 1e3 * megabytes, 1)[0])


def run(args: argparse.Namespace) -> dict[str, Any]:
    if min(args.iterations, args.frames) < 2 * args.points or args.points < 4:
        raise SystemExit(
            f"expected at least 4 points, and twice as many iterations and frames as points; found "
            f"{args.points} points, {args.iterations} iterations, {args.frames} frames"
        )
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        cfg = build_config(
            str(CONFIG),
            [
                "MODEL.DEVICE", "cpu", *TINY, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", args.iterations,
                "DATASETS.SYNTHETIC.CACHE_DIR", str(Path(folder) / "frames"),
                "SOLVER.CHECKPOINT_PERIOD", max(1, args.iterations // 10),
                "DATASETS.SYNTHETIC.NUM_ANOMALY", args.frames, *args.overrides,
            ],
        )  # fmt: skip
        trainer = Trainer(cfg)
        watch = MemoryWatch(
            trainer.segmentor.backbone,
            every_iterations=args.iterations // args.points,
            every_frames=args.frames // args.points,
        )
        trainer.register_hooks([watch])
        trainer.train()
    tables = {"iterations": watch.training, "frames": watch.evaluation}
    slopes = {name: slope(series) for name, series in tables.items()}
    for name, number in slopes.items():
        print(f"{name}: {number:+.2f} kB each over the second half")
    if args.figure:
        draw(args.figure, tables)
        print(f"drawn to {args.figure}")
    return {
        "environment": environment([torch]),
        "overrides": list(map(str, args.overrides)),
        "resident_MB": tables,
        "kB_a_step": slopes,
    }


def draw(target: Path, tables: dict[str, Series]) -> None:
    """Both tables side by side, on one axis that begins at zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots(1, len(tables), sharey=True)
    for axis, (name, series) in zip(axes, tables.items(), strict=True):
        axis.plot(*zip(*series, strict=True), marker=".")
        axis.set_xlabel({"iterations": "training iterations", "frames": "evaluated frames"}[name])
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1.1 * max(megabytes for series in tables.values() for _, megabytes in series))
    axes[0].set_ylabel("resident MB")
    with replacing(target) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
