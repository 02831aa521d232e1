"""The processes of a run: how Detectron2's launcher or torchrun starts them, and how signals end them."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.engine import launch as spawn
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from gmm_anomaly.gmm.collectives import sum_over_ranks, world_size

from .config import config_overrides, read_config

Job = Callable[[Namespace], object]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    on_gpu = device.startswith("cuda")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        elsewhere = (args.num_machines, args.machine_rank, args.dist_url) != (1, 0, None)
        if elsewhere or args.num_gpus not in (None, 0, here):
            raise ValueError(
                "--num-gpus, --num-machines, --machine-rank, --dist-url: leave them out under torchrun, "
                f"which has started {here} processes on this machine and {everywhere} in all; its "
                "--nproc-per-node, --nnodes, --node-rank and --rdzv-endpoint say these things"
            )
        _check_device(device, here, everywhere, asked=False)
        # Torchrun prints what `record` writes down of a worker that fails.
        record(_join)(job, args, here, everywhere, on_gpu=on_gpu)
        return
    if args.num_machines > 1 and (
        args.dist_url in (None, "auto") or not 0 <= args.machine_rank < args.num_machines
    ):
        raise ValueError(
            f"--num-machines {args.num_machines}: expected --dist-url tcp://HOST:PORT, HOST being machine 0, "
            f"and --machine-rank 0 to {args.num_machines - 1}, found {args.dist_url} and {args.machine_rank}"
        )
    processes = max(args.num_gpus or 1, 1)
    _check_device(device, processes, processes * args.num_machines, asked=bool(args.num_gpus))
    if not on_gpu and torch.cuda.is_available():
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


def _join(job: Job, args: Namespace, here: int, everywhere: int, *, on_gpu: bool) -> None:
    """Run as one of torchrun's processes, set up as Detectron2's launcher sets up its own."""
    if everywhere > 1:
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
        comm.create_local_process_group(here)
        comm.synchronize()
    _run(job, args)


def _check_device(device: str, here: int, everywhere: int, *, asked: bool) -> None:
    """Raise ValueError unless each of the processes ``here`` can have a GPU of its own, if it wants one.
    Unless somebody ``asked`` for GPUs, beside the config's default, the CPU does where there is none."""
    if not device.startswith("cuda"):
        return
    if everywhere > 1 and device != "cuda":
        raise ValueError(
            f'MODEL.DEVICE: each of {everywhere} processes takes a GPU of its own, expected "cuda", found '
            f"{device!r}; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    found = torch.cuda.device_count()
    if (asked or everywhere > 1) and here > found:
        raise ValueError(
            f"--num-gpus: {here} processes on this machine, which has {found} GPUs. Start at most as many, "
            "or train on the CPU (--num-gpus 0 for one process, MODEL.DEVICE cpu at the end of the command "
            "for as many as you like)"
        )


# Ctrl-C and a cluster's SIGTERM: a training ends with a checkpoint.


class Interrupted(SystemExit):
    """Ends the program with the status that shells give to a signal: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class Interruption:
    """The first signal asks for an end after the current iteration, the second one ends the program at once.

    Attributes:
        signum: the signal that came first, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take over SIGINT and SIGTERM."""
        self._process = os.getpid()
        before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises :class:`Interrupted` at once: for work that changes no state."""
        self.end_if_asked()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
        # Where the exception was swallowed, in a destructor for example.
        self.end_if_asked()

    def asked_anywhere(self, device: torch.device) -> bool:
        """Whether a signal came to any rank; then it counts as this one's too. Collective."""
        if world_size() > 1:
            # SIGTERM, the larger number, is nobody's mistake.
            asked = torch.zeros(max(SIGNALS) + 1, dtype=torch.int32, device=device)
            asked[self.signum or 0] = 1
            self.signum = int(sum_over_ranks(asked).nonzero().max()) or None
        return self.signum is not None

    def end_if_asked(self) -> None:
        """Raise :class:`Interrupted` for the signal that came, if one did."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker of a loader has just been forked with this handler. Its inputs are still needed.
            return
        name = signal.Signals(signum).name
        if self.signum is not None:
            # Past every handler and hook: this is what the second Ctrl-C is for.
            _say(f"\n{name} again: ending at once, without a checkpoint\n")
            os._exit(128 + signum)
        self.signum = signum
        if self._at_once:
            self._at_once = False
            raise Interrupted(signum)
        _say(f"\n{name}: this iteration is finished and a checkpoint written; once more ends at once\n")


def _say(text: str) -> None:
    # Not by logging: the signal may have come while a line was being written.
    os.write(2, text.encode())
