"""Scaling: training iterations of one and of two processes here, what travels between them in an iteration,
and what a model makes of that for up to eight.

The model: ``seconds(n) = compute + 2 (n - 1) / n * bytes / bandwidth``, a ring that waits for nothing else.
Each process has a core or GPU of its own; gradients do not travel while others are computed, so real runs do
better; the bandwidth is that between two processes, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from gmm_anomaly.freed_memory import keep_freed_memory
from gmm_anomaly.gmm import collectives

from .timing import environment
from .train import Iteration
from .twins import add_arguments as add_twin_arguments
from .twins import settings, twin_config

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
MOST = 8
COLLECTIVES = ("gather_stack", "sum_over_ranks", "broadcast_from_first")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_twin_arguments(parser)
    # All processes share this machine.
    parser.set_defaults(config_file=str(CONFIG), size=(64, 96), device="cpu")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.device != "cpu":
        raise ValueError(f"--device: expected cpu, two processes by gloo, found {args.device!r}")
    measured = {processes: _measure(processes, args) for processes in (1, 2)}
    one, two = measured[1], measured[2]
    travelling = two["gradient_bytes"] + two["mixture_bytes"]
    bandwidth = two["gradient_bytes"] / two["gradient_seconds"]
    modelled = model_scaling(one["processor_seconds"], travelling, bandwidth, args.batch)
    given = settings(args, twin_config(args, "gmm"))
    print(
        f"training in several processes, {given['config']}, {args.batch} x {args.size[0]}x{args.size[1]} each"
    )
    for processes, found in measured.items():
        rate = 1 / found["seconds"]
        speed = processes * args.batch * rate
        print(f"  {processes} here {rate:14.2f} iterations/s {speed:10.2f} images/s")
    print(f"  bytes an iteration: gradients {two['gradient_bytes']:,}, mixture {two['mixture_bytes']:,.0f}")
    print(f"  bandwidth between two processes: {bandwidth / 1e6:.0f} MB/s")
    print("  model: compute + 2 (n - 1) / n * bytes / bandwidth, a core for each, nothing overlaps")
    for row in modelled:
        print(
            f"  {row['processes']} modelled {1 / row['seconds']:10.2f} iterations/s "
            f"{row['images_per_second']:10.2f} images/s  {row['efficiency']:6.1%} of linear"
        )
    return {
        "settings": given,
        "environment": environment([torch]),
        "measured": {str(processes): found for processes, found in measured.items()},
        "bandwidth": bandwidth,
        "modelled": modelled,
    }


def model_scaling(compute: float, travelling: float, bandwidth: float, batch: int) -> list[dict[str, float]]:
    """What the model says of 1 to 8 processes.

    Args:
        compute: seconds of an iteration of one process. travelling: bytes that are summed over the processes.
        bandwidth: bytes a second. batch: images of a process.

    Returns:
        For each number of processes seconds of an iteration, images per second of all of them, and that as
        a share of so many times one process.
    """
    rows = []
    for processes in range(1, MOST + 1):
        seconds = compute + 2 * (processes - 1) / processes * travelling / bandwidth
        rows.append(
            {
                "processes": processes,
                "seconds": seconds,
                "images_per_second": processes * batch / seconds,
                "efficiency": compute / seconds,
            }
        )
    return rows


def _measure(processes: int, args: argparse.Namespace) -> dict[str, float]:
    """Figures of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (processes, folder, args), nprocs=processes)
        found: dict[str, float] = json.loads((Path(folder) / "found.json").read_text())
        return found


def _rank(rank: int, processes: int, folder: str, args: argparse.Namespace) -> None:
    """Seconds of an iteration, wall-clock and processor time; bytes of the gradients and of the mixture; and
    seconds that as many bytes as the gradients have take between the processes."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    cfg = twin_config(args, "gmm")
    iteration = Iteration(args, cfg)
    interval = cfg.MODEL.GMM.UPDATE_INTERVAL
    wall, processor = [], []
    with _counted_bytes() as travelled:
        for _ in range(args.repeats):
            starts = time.perf_counter(), time.process_time()
            for _ in range(interval):
                iteration()
            wall.append((time.perf_counter() - starts[0]) / interval)
            processor.append((time.process_time() - starts[1]) / interval)
    numbers = sum(p.numel() for p in iteration.loop.model.parameters() if p.requires_grad)
    found = {
        "seconds": median(wall),
        "processor_seconds": median(processor),
        "gradient_bytes": 4 * numbers,
        "mixture_bytes": sum(travelled) / (interval * args.repeats),
    }
    if processes > 1:
        found["gradient_seconds"] = _seconds_of_sum(numbers, args.repeats)
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))


def _seconds_of_sum(numbers: int, repeats: int) -> float:
    tensor = torch.zeros(numbers)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


@contextmanager
def _counted_bytes() -> Iterator[list[int]]:
    """The bytes of each tensor that is given to the mixture's collective operations, and to the step's check
    for numbers that are not finite."""
    sizes: list[int] = []
    with ExitStack() as stack:
        for name in COLLECTIVES:
            function = getattr(collectives, name)

            def counted(tensor: Tensor, function: Any = function) -> Any:
                sizes.append(tensor.nbytes)
                return function(tensor)

            stack.enter_context(patch.object(collectives, name, counted))
        yield sizes
