"""Scaling: training iterations of several processes here, and the bytes that each of them sends in one."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from tabulate import tabulate

from gmm_anomaly.compat import keep_freed_memory
from gmm_anomaly.gmm import collectives
from tools.benchmarks.models import Iteration, add_arguments, twin_config

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"


def add_scaling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="of runs (1 2)")
    add_arguments(parser)
    # All processes share this machine.
    parser.set_defaults(config_file=str(CONFIG), size=(64, 96))


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    if args.device != "cpu":
        raise SystemExit(f"--device: expected cpu, processes by gloo, found {args.device!r}")
    rows = []
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (processes, folder, args), nprocs=processes)
            rows.append(json.loads((Path(folder) / "found.json").read_text()))
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g", intfmt=","))
    return {"runs": rows}


def _rank(rank: int, processes: int, folder: str, args: argparse.Namespace) -> None:
    """Of one iteration: images per second of all processes, and bytes of gradients and of the mixture."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    cfg = twin_config(args, "gmm")
    iteration = Iteration(args, cfg)
    times, sent = cfg.MODEL.GMM.UPDATE_INTERVAL * args.repeats, []
    with ExitStack() as stack:
        for name in ("gather_stack", "sum_over_ranks", "broadcast_from_first"):
            function = getattr(collectives, name)
            counted = lambda tensor, call=function: sent.append(tensor.nbytes) or call(tensor)  # noqa: E731
            stack.enter_context(patch.object(collectives, name, counted))
        start = time.perf_counter()
        for _ in range(times):
            iteration()
        seconds = (time.perf_counter() - start) / times
    found = {
        "processes": processes,
        "images_per_second": processes * args.batch / seconds,
        "gradient_bytes": sum(p.nbytes for p in iteration.loop.model.parameters() if p.requires_grad),
        "mixture_bytes": sum(sent) // times,
    }
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
