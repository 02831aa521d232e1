"""Scaling: training iterations of one and of two processes here, what travels between them in an iteration,
and what a model makes of that for up to eight.

Each process of the model has a core or GPU of its own; gradients do not travel while others are computed, so
real runs do better; the bandwidth is that between two processes, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing
from tabulate import tabulate

from gmm_anomaly.compat import keep_freed_memory
from gmm_anomaly.gmm import collectives
from tools.benchmarks.models import Iteration, add_arguments, twin_config

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
MOST = 8


def add_scaling_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    # All processes share this machine.
    parser.set_defaults(config_file=str(CONFIG), size=(64, 96))


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    if args.device != "cpu":
        raise SystemExit(f"--device: expected cpu, two processes by gloo, found {args.device!r}")
    measured = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (processes, folder, args), nprocs=processes)
            measured[processes] = json.loads((Path(folder) / "found.json").read_text())
        speed = processes * args.batch / measured[processes]["seconds"]
        print(f"{processes} here: {speed:.2f} images/s, {args.batch} images each")
    two = measured[2]
    bandwidth = two["gradient_bytes"] / two["gradient_seconds"]
    travelling = two["gradient_bytes"] + two["mixture_bytes"]
    modelled = model_scaling(measured[1]["processor_seconds"], travelling, bandwidth, args.batch)
    print(f"bytes an iteration: gradients {two['gradient_bytes']:,}, mixture {two['mixture_bytes']:,.0f}")
    print(f"bandwidth between two processes: {bandwidth / 1e6:.0f} MB/s; modelled:")
    print(tabulate(modelled, headers="keys", tablefmt="github", floatfmt=".3g"))
    return {"measured": measured, "bandwidth": bandwidth, "modelled": modelled}


def model_scaling(compute: float, travelling: float, bandwidth: float, batch: int) -> list[dict[str, float]]:
    """A ring of 1 to 8 processes: an iteration takes ``compute + 2 (n - 1) / n * bytes / bandwidth`` seconds;
    images per second of all, and that as a share of n times one process."""
    rows = []
    for n in range(1, MOST + 1):
        seconds = compute + 2 * (n - 1) / n * travelling / bandwidth
        speeds = {"images_per_second": n * batch / seconds, "efficiency": compute / seconds}
        rows.append({"processes": n, "seconds": seconds} | speeds)
    return rows


def _rank(rank: int, processes: int, folder: str, args: argparse.Namespace) -> None:
    """Seconds of an iteration, wall-clock and processor time; bytes of the gradients and of the mixture; and
    seconds that as many bytes as the gradients have take between the processes."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    cfg = twin_config(args, "gmm")
    iteration = Iteration(args, cfg)
    times, travelled = cfg.MODEL.GMM.UPDATE_INTERVAL * args.repeats, []
    with ExitStack() as stack:
        for name in ("gather_stack", "sum_over_ranks", "broadcast_from_first"):
            function = getattr(collectives, name)
            counted = lambda tensor, call=function: travelled.append(tensor.nbytes) or call(tensor)  # noqa: E731
            stack.enter_context(patch.object(collectives, name, counted))
        starts = time.perf_counter(), time.process_time()
        for _ in range(times):
            iteration()
        found = {
            "seconds": (time.perf_counter() - starts[0]) / times,
            "processor_seconds": (time.process_time() - starts[1]) / times,
            "mixture_bytes": sum(travelled) / times,
        }
    numbers = sum(p.numel() for p in iteration.loop.model.parameters() if p.requires_grad)
    found["gradient_bytes"] = 4 * numbers
    if processes > 1:
        tensor, seconds = torch.zeros(numbers), []
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - start)
        found["gradient_seconds"] = median(seconds[1:])
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
