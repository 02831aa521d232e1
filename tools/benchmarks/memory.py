"""Memory of a long run: resident size of the process over training iterations, then over evaluated frames.

A tiny network on tiny synthetic frames, so that a leak of a few kB a step is not lost in what a batch needs;
everything else is as in a real run: loader, EM, hooks, writers, evaluators.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.engine.hooks import CallbackHook

from gmm_anomaly.engine import Trainer, build_config
from tools.benchmarks import timing
from tools.benchmarks.models import NO_WEIGHTS

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
TINY = (
    "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.NUM_TRAIN", 50,
    "DATASETS.SYNTHETIC.NUM_VAL", 4, "INPUT.CROP.SIZE", [64, 64], "SOLVER.IMS_PER_BATCH", 2,
    "DATALOADER.NUM_WORKERS", 0, "MODEL.GMM.MEMORY_SIZE", 500, "MODEL.FEATURE_DISTANCE.FEATURES", [],
    "TEST.SCORES", ["gmm_density", "msp"], "DATASETS.TEST", ("synthetic_street_anomaly",),
    "TEST.EVAL_PERIOD", 0, "SEED", 0, "MODEL.DEVICE", "cpu",
)  # fmt: skip
# Points of (iterations or frames done, MB).
Series = list[tuple[int, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--iterations", type=int, default=2000, help="of the training (2000)")
    parser.add_argument("--frames", type=int, default=500, help="that are evaluated after it (500)")
    parser.add_argument("--points", type=int, default=20, help="of each of the two tables (20)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")


def slope(series: Series) -> float:
    """kB a step, by least squares over the second half: the first fills caches, pools and the mixtures."""
    steps, megabytes = np.array(series[len(series) // 2 :], dtype=float).T
    return float(np.polyfit(steps, 1e3 * megabytes, 1)[0])


def memory(args: argparse.Namespace) -> dict[str, Any]:
    tables: dict[str, Series] = {"iterations": [], "frames": []}
    frames = [0]

    def note(what: str, done: int, of: int) -> None:
        if done % (of // args.points) == 0:
            tables[what].append((done, timing.memory("cpu") / 1e6))
            print(f"{done:6d} {what:10s} {tables[what][-1][1]:8.1f} MB resident", flush=True)

    def count_frame(*_: object) -> None:
        if trainer.iter == trainer.max_iter:
            frames[0] += 1
            note("frames", frames[0], args.frames)

    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *NO_WEIGHTS, *TINY, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", args.iterations,
            "DATASETS.SYNTHETIC.CACHE_DIR", str(Path(folder) / "frames"),
            "SOLVER.CHECKPOINT_PERIOD", max(1, args.iterations // 10),
            "DATASETS.SYNTHETIC.NUM_ANOMALY", args.frames, *args.overrides,
        ]  # fmt: skip
        trainer = Trainer(build_config(str(CONFIG), overrides))
        trainer.segmentor.backbone.register_forward_hook(count_frame)
        watch = CallbackHook(after_step=lambda t: note("iterations", t.iter + 1, args.iterations))
        trainer.register_hooks([watch])
        trainer.train()
    slopes = {name: slope(series) for name, series in tables.items()}
    for name, number in slopes.items():
        print(f"{name}: {number:+.2f} kB each over the second half")
    return {"resident_MB": tables, "kB_a_step": slopes}
