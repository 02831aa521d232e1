"""Training: one iteration of the gmm classifier against its softmax twin's, side by side.

An iteration is what a run does: forward, backward, optimiser, and the hooks after it; every fifth iteration
has an EM step, so the median shows one without and the mean all of them.
"""

from __future__ import annotations

import argparse
import itertools
from math import ceil
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.engine import EMHook
from gmm_anomaly.engine.optimizer import build_optimizer
from gmm_anomaly.engine.train_loop import TrainLoop
from gmm_anomaly.freed_memory import keep_freed_memory

from .device import clock
from .time_shares import data_seconds, iteration_shares, print_shares
from .timing import environment, ratio, side_by_side, summary
from .twins import add_arguments as add_twin_arguments
from .twins import block_label, print_times, random_image, settings, twin_config
from .variants import add_variants_argument, compare_variants

WANTED = 1.10
# Without a class that still waits for its k-means, as for nearly all of a run.
WARM_UP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_variants_argument(parser)
    add_twin_arguments(parser)


class Iteration:
    """Calls are training iterations of one twin on the same batch; the first ones are done.

    Args:
        cfg: of the twin.
    """

    def __init__(self, args: argparse.Namespace, cfg: CfgNode) -> None:
        torch.manual_seed(0)
        model = build_model(cfg)
        classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
        batch = [
            {"image": random_image(args.size, seed), "sem_seg": block_label(args.size, classes, seed)}
            for seed in range(args.batch)
        ]
        self.loop = TrainLoop(
            wrap_distributed(model),
            itertools.repeat(batch),
            build_optimizer(cfg, model),
            amp=cfg.SOLVER.AMP.ENABLED,
        )
        self.loop.max_iter = cfg.SOLVER.MAX_ITER
        self.loop.storage = EventStorage()
        if model.bank is not None:
            self.loop.register_hooks([EMHook.from_config(cfg, model.bank)])
        for _ in range(WARM_UP):
            self()

    def __call__(self) -> None:
        with self.loop.storage:
            self.loop.before_step()
            self.loop.run_step()
            self.loop.after_step()
        self.loop.iter += 1


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    cfg = twin_config(args, "gmm")
    now = clock(cfg.MODEL.DEVICE)
    twins = {name: Iteration(args, twin_config(args, name)) for name in ("softmax", "gmm")}
    seconds = side_by_side(twins, args.repeats, now)
    times = {name: summary(values)._asdict() for name, values in seconds.items()}
    found = ratio(seconds["gmm"], seconds["softmax"])._asdict()
    mean_ratio = sum(seconds["gmm"]) / sum(seconds["softmax"])
    given = settings(args, cfg)
    precision = ", mixed precision" if cfg.SOLVER.AMP.ENABLED else ""
    print(
        f"one training iteration, {given['config']}, {args.batch} x {args.size[0]}x{args.size[1]}{precision}"
    )
    print_times(times, {"gmm / softmax": found}, WANTED, args.batch)
    print(f"  {'of all iterations':24s} {mean_ratio:10.3f}")
    shares = _shares(args, cfg, twins["gmm"])
    # Their memory is wanted for the variants.
    del twins
    return {
        "settings": given,
        "environment": environment([torch]),
        "seconds": times,
        "images_per_second": {name: args.batch / values["median"] for name, values in times.items()},
        "ratio": found,
        "ratio_of_means": mean_ratio,
        "where": shares,
        **({"variants": compare_variants(args, lambda cfg: Iteration(args, cfg))} if args.variants else {}),
    }


def _shares(args: argparse.Namespace, cfg: CfgNode, twin: Iteration) -> dict[str, Any]:
    """Compiled parts cannot be timed apart: there the network is timed without compiling."""
    now, interval = clock(cfg.MODEL.DEVICE), cfg.MODEL.GMM.UPDATE_INTERVAL
    times = interval * ceil(args.repeats / interval)
    model = twin.loop.model
    compiled, model.compiled = model.compiled, False
    try:
        seconds = iteration_shares(twin, twin.loop, times, now)
    finally:
        model.compiled = compiled
    data: dict[str, float] | str
    try:
        data = data_seconds(args, args.repeats, now)
    except FileNotFoundError as error:
        data = f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: {str(error).splitlines()[0]}"
    return print_shares(seconds, data, args.batch)
