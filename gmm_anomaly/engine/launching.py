"""The processes of a run: one, those that Detectron2's launcher starts, or those that torchrun started."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.engine import launch as spawn
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.rendezvous import rendezvous

from .config import read_config
from .round_store import round_store

Job = Callable[[Namespace], object]

COUNTS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TorchrunWorker:
    """This process's place among those that torchrun started.

    Attributes:
        rank, world_size: among all processes. local_rank, local_world_size: among those of this machine.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> TorchrunWorker | None:
        """What torchrun's variables say; None outside torchrun.

        Some of the variables alone are what clusters leave in every job's environment, and mean nothing.

        Raises:
            ValueError: torchrun started this process, but variables are missing, are no numbers or do not fit
                each other.
        """
        missing = [name for name in (*COUNTS, *ADDRESS) if not environment.get(name)]
        if missing and "TORCHELASTIC_RUN_ID" not in environment:
            return None
        if missing:
            raise ValueError(
                f"torchrun's environment lacks {', '.join(missing)}: hand all variables of torchrun on to "
                "train_net.py"
            )
        try:
            rank, local_rank, world_size, local_world_size = (int(environment[name]) for name in COUNTS)
        except ValueError:
            found = ", ".join(f"{name} {environment[name]!r}" for name in COUNTS)
            raise ValueError(f"torchrun's environment: expected integers, found {found}") from None
        if not (0 <= rank < world_size and 0 <= local_rank < local_world_size):
            raise ValueError(
                f"torchrun's environment: expected RANK under WORLD_SIZE and LOCAL_RANK under "
                f"LOCAL_WORLD_SIZE, found {rank} of {world_size} and {local_rank} of {local_world_size}"
            )
        if world_size % local_world_size:
            raise ValueError(
                f"torchrun: expected as many processes on every machine, found {local_world_size} here and "
                f"{world_size} in all; give every machine the same --nproc-per-node"
            )
        return cls(rank, local_rank, world_size, local_world_size)


def config_overrides(args: Namespace) -> list[str]:
    """The command line's ``KEY VALUE`` pairs; ``--num-gpus 0`` is a pair that comes first."""
    return [*(["MODEL.DEVICE", "cpu"] if args.num_gpus == 0 else []), *args.opts]


def launch(job: Job, args: Namespace) -> None:
    """Run ``job(args)`` in every process of the run, connected by nccl on GPUs and by gloo elsewhere.

    Args:
        job: a function of a module, for other processes import it.
        args: of Detectron2's parser. ``num_gpus`` and ``dist_url`` are None where they are not given. On
            the CPU (``MODEL.DEVICE``) ``num_gpus`` is the number of processes on this machine, 0 being one.

    Raises:
        ValueError: arguments that contradict each other, torchrun or the machine; in every process, before
            any of them waits for another.
        FileNotFoundError: no such config file.
    """
    device = read_config(args.config_file, config_overrides(args)).MODEL.DEVICE
    worker = TorchrunWorker.from_environment()
    if worker is not None:
        _check_arguments_beside_torchrun(args, worker)
        _check_device(device, worker.local_world_size, worker.world_size, args.num_gpus)
        # Torchrun prints what `record` writes down of a worker that fails.
        record(_join)(job, args, worker, device)
        return
    _check_machines(args)
    processes = 1 if args.num_gpus is None else max(args.num_gpus, 1)
    _check_device(device, processes, processes * args.num_machines, args.num_gpus)
    if not device.startswith("cuda") and torch.cuda.is_available():
        # Detectron2's launcher takes nccl wherever it sees a GPU, and that cannot carry tensors of the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    spawn(
        _run,
        processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url or "auto",
        args=(job, args),
    )


def _run(job: Job, args: Namespace) -> None:
    """One process: the job, then a common end (a process group that is left open may abort at exit)."""
    job(args)
    if comm.get_world_size() > 1:
        comm.synchronize()
        dist.destroy_process_group()


def _join(job: Job, args: Namespace, worker: TorchrunWorker, device: str) -> None:
    """Run as one of torchrun's processes, set up as Detectron2's launcher sets up its own."""
    if worker.world_size > 1:
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(worker.local_rank)
        store, rank, world_size = next(rendezvous("env://", timeout=DEFAULT_TIMEOUT))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=round_store(store, rank, world_size, DEFAULT_TIMEOUT),
            rank=rank,
            world_size=world_size,
            timeout=DEFAULT_TIMEOUT,
        )
        comm.create_local_process_group(worker.local_world_size)
        comm.synchronize()
    _run(job, args)


def _check_arguments_beside_torchrun(args: Namespace, worker: TorchrunWorker) -> None:
    if args.num_gpus not in (None, 0, worker.local_world_size):
        raise ValueError(
            f"--num-gpus {args.num_gpus}: torchrun has started {worker.local_world_size} processes on this "
            "machine; leave --num-gpus out, torchrun's --nproc-per-node says how many there are"
        )
    if args.num_machines != 1 or args.machine_rank != 0:
        raise ValueError(
            f"--num-machines {args.num_machines} --machine-rank {args.machine_rank}: leave them out under "
            "torchrun, its --nnodes and --node-rank say this"
        )
    if args.dist_url is not None:
        raise ValueError(
            f"--dist-url {args.dist_url}: leave it out under torchrun, its --rdzv-endpoint (or --master-addr "
            "and --master-port) says where processes meet"
        )


def _check_machines(args: Namespace) -> None:
    if args.num_gpus is not None and args.num_gpus < 0:
        raise ValueError(f"--num-gpus: expected 0 (the CPU) or more, found {args.num_gpus}")
    if args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank: expected 0 to {args.num_machines - 1} with --num-machines {args.num_machines}, "
            f"found {args.machine_rank}"
        )
    if args.num_machines > 1 and args.dist_url in (None, "auto"):
        raise ValueError(
            f"--dist-url: {args.num_machines} machines need the address where they meet; give all of them "
            "--dist-url tcp://HOST:PORT, HOST being machine 0"
        )


def _check_device(device: str, processes: int, world_size: int, num_gpus: int | None) -> None:
    """Raise ValueError unless each of this machine's processes can have a GPU of its own, if it wants one."""
    if not device.startswith("cuda"):
        return
    if world_size > 1 and device != "cuda":
        raise ValueError(
            f'MODEL.DEVICE: each of {world_size} processes takes a GPU of its own, expected "cuda", found '
            f"{device!r}; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    found = torch.cuda.device_count()
    if world_size == 1 and not num_gpus:
        # Nobody asked for a GPU but the config's default: the CPU does where there is none.
        return
    if processes > found:
        asked = f"--num-gpus {num_gpus}" if num_gpus else f"torchrun's {processes} processes on this machine"
        raise ValueError(
            f"{asked}: this machine has {found} GPUs. Start at most as many processes, or train on the CPU "
            f"({'--num-gpus 0 for one process, ' if num_gpus else ''}MODEL.DEVICE cpu at the end of the "
            "command for as many as you like)"
        )
