"""How runs of several processes start, and start again: torchrun, several machines, contradictions."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gmm_anomaly.engine import launching
from gmm_anomaly.engine.held_log import held_log
from gmm_anomaly.engine.launching import TorchrunWorker, config_overrides, launch
from gmm_anomaly.engine.restarting import FILE, resumes_after_restart
from gmm_anomaly.engine.round_store import round_store

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
TORCHRUN = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29511", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
TINY = [
    "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.NUM_TRAIN", 4,
    "DATASETS.SYNTHETIC.CACHE_DIR", "", "INPUT.CROP.SIZE", [64, 64], "MODEL.BACKBONE.WEIGHTS", "",
    "MODEL.FEATURE_DISTANCE.FEATURES", [], "TEST.SCORES", ["gmm_density"], "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", (),
    "MODEL.DEVICE", "cpu",
]  # fmt: skip


@pytest.fixture
def no_torchrun(monkeypatch):
    for name in (*TORCHRUN, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def under_torchrun(no_torchrun):
    for name, value in TORCHRUN.items():
        no_torchrun.setenv(name, value)
    return no_torchrun


def arguments(*command):
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser().parse_args([*map(str, command)])


def job(args):
    raise AssertionError("no process may start")


def test_torchrun_is_known_by_its_variables():
    assert TorchrunWorker.from_environment(TORCHRUN) == TorchrunWorker(3, 1, 4, 2)
    # What clusters set for other purposes is not torchrun's.
    assert TorchrunWorker.from_environment({}) is None
    left = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert TorchrunWorker.from_environment(left) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOCAL_RANK": "", "MASTER_PORT": ""}, "lacks LOCAL_RANK, MASTER_PORT: hand all variables"),
        ({"RANK": "two"}, "expected integers, found RANK 'two', LOCAL_RANK '1'"),
        ({"RANK": "4"}, "RANK under WORLD_SIZE .* found 4 of 4"),
        ({"WORLD_SIZE": "5"}, "as many processes on every machine, found 2 here and 5 in all"),
    ],
)
def test_torchrun_variables_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        TorchrunWorker.from_environment(TORCHRUN | changes)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--num-gpus", 4), "--num-gpus 4: torchrun has started 2 processes on this machine; leave"),
        (("--num-gpus", 1), "--num-gpus 1: torchrun has started 2 processes"),
        (("--num-machines", 2), "--num-machines 2 --machine-rank 0: leave them out under torchrun"),
        (("--machine-rank", 1), "--num-machines 1 --machine-rank 1: leave them out under torchrun"),
        (("--dist-url", "auto"), "--dist-url auto: leave it out under torchrun"),
    ],
)
def test_arguments_that_contradict_torchrun(under_torchrun, command, message):
    with pytest.raises(ValueError, match=message):
        launch(job, arguments("--config-file", CONFIG, *command, "MODEL.DEVICE", "cpu"))
    assert not torch.distributed.is_initialized()


def test_torchrun_needs_a_gpu_for_each_process(under_torchrun):
    under_torchrun.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"torchrun's 2 processes on this machine: this machine has 1 GPUs\. "
    ):
        launch(job, arguments("--config-file", CONFIG))
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE: each of 4 processes .* found \'cuda:1\'"):
        launch(job, arguments("--config-file", CONFIG, "MODEL.DEVICE", "cuda:1"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--num-gpus", 4), r"--num-gpus 4: this machine has 2 GPUs\. .*--num-gpus 0 .*MODEL\.DEVICE cpu"),
        (("--num-gpus", -1), r"--num-gpus: expected 0 \(the CPU\) or more, found -1"),
        (("--num-machines", 2, "--machine-rank", 2), "--machine-rank: expected 0 to 1 .* found 2"),
        (("--num-machines", 2), "--dist-url: 2 machines need the address where they meet"),
        (("--num-machines", 2, "--dist-url", "auto"), "--dist-url: 2 machines need the address"),
        (("--num-gpus", 2, "MODEL.DEVICE", "cuda:1"), r"MODEL\.DEVICE: each of 2 processes"),
    ],
)
def test_arguments_that_contradict_the_machine(no_torchrun, command, message):
    no_torchrun.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        launch(job, arguments("--config-file", CONFIG, *command))


@pytest.mark.parametrize(
    ("command", "processes", "machines", "url"),
    [
        ((), 1, (1, 0), "auto"),
        (("--num-gpus", 0), 1, (1, 0), "auto"),
        (("--num-gpus", 2), 2, (1, 0), "auto"),
        (("--num-gpus", 3, "MODEL.DEVICE", "cpu"), 3, (1, 0), "auto"),
        # On the CPU each machine has a process too.
        (
            ("--num-gpus", 0, "--num-machines", 2, "--machine-rank", 1, "--dist-url", "tcp://host:5000"),
            1, (2, 1), "tcp://host:5000",
        ),
    ],
)  # fmt: skip
def test_what_detectron2s_launcher_is_asked_for(no_torchrun, command, processes, machines, url):
    asked = []
    no_torchrun.setattr(launching, "spawn", lambda *call, **options: asked.append((call, options)))
    no_torchrun.setattr(torch.cuda, "device_count", lambda: 2)
    no_torchrun.setattr(torch.cuda, "is_available", lambda: True)
    no_torchrun.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    args = arguments("--config-file", CONFIG, *command)
    launch(job, args)
    [(call, options)] = asked
    assert call == (launching._run, processes)
    assert (options["num_machines"], options["machine_rank"], options["dist_url"]) == (*machines, url)
    assert options["args"] == (job, args)
    on_cpu = "cpu" in command or args.num_gpus == 0
    # With a GPU in sight the launcher would connect processes on the CPU by nccl.
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if on_cpu else "0,1")


def test_default_device_falls_back_to_the_cpu_in_one_process(no_torchrun):
    no_torchrun.setattr(torch.cuda, "device_count", lambda: 0)
    done = []
    launch(done.append, arguments("--config-file", CONFIG))
    assert len(done) == 1
    with pytest.raises(ValueError, match=r"--num-gpus 1: this machine has 0 GPUs"):
        launch(job, arguments("--config-file", CONFIG, "--num-gpus", 1))


def test_num_gpus_0_is_a_pair_that_later_ones_override():
    assert config_overrides(arguments("--num-gpus", 0, "SEED", 1)) == ["MODEL.DEVICE", "cpu", "SEED", "1"]
    assert config_overrides(arguments("SEED", 1)) == ["SEED", "1"]


def test_a_restart_resumes_only_what_its_own_command_has_saved(under_torchrun, tmp_path):
    def torchrun(command, attempt):
        file = tmp_path / command / f"attempt_{attempt}" / "0" / "error.json"
        under_torchrun.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        under_torchrun.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))

    def save(name):
        (output / "last_checkpoint").write_text(name)
        when = 10**9 * (len(name) + 1)
        os.utime(output / "last_checkpoint", ns=(when, when))

    output = tmp_path / "run"
    output.mkdir()
    save("of_another_run")
    torchrun("first", 0)
    assert not resumes_after_restart(str(output))
    torchrun("first", 1)
    assert not resumes_after_restart(str(output)), "that checkpoint was there before the command"
    save("own")
    torchrun("first", 2)
    assert resumes_after_restart(str(output))
    # Machines that joined: torchrun starts a round anew without counting it.
    torchrun("first", 0)
    assert resumes_after_restart(str(output))
    torchrun("second", 0)
    assert not resumes_after_restart(str(output)), "another command does not ask to --resume"
    assert json.loads((output / FILE).read_text())["agents"] == [
        f"{socket.gethostname()}:{tmp_path / 'second'}"
    ]


def test_a_round_sees_nothing_of_the_rounds_before():
    """torchrun's store keeps what dead workers wrote: here whole rounds, and some never complete."""
    store, patience = dist.HashStore(), timedelta(seconds=60)
    with ThreadPoolExecutor(3) as threads:
        for number in range(2):
            ranks = [threads.submit(round_store, store, rank, 3, patience) for rank in range(3)]
            own = [rank.result() for rank in ranks]
            assert not any(part.check(["address"]) for part in own)
            own[number].set("address", f"of round {number}")
            assert {part.get("address") for part in own} == {f"of round {number}".encode()}
        with pytest.raises(TimeoutError, match=r"processes 1, 2 of 3 .* did not come within 0 s"):
            round_store(store, 0, 3, timedelta(seconds=0.2))
        store.set("gmm_anomaly/question/1", "of a process that died while it waited")
        first = threads.submit(round_store, store, 0, 2, patience)
        second = threads.submit(round_store, store, 1, 2, patience)
        assert not first.result().check(["address"]) and not second.result().check(["address"])


def test_without_torchrun_nothing_is_written(no_torchrun, tmp_path):
    assert not resumes_after_restart(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_lines_from_before_the_log_reach_it_once():
    logger, lines = logging.getLogger("held_log_of_a_test"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    with pytest.raises(KeyError), held_log(logger.name):
        logging.getLogger(f"{logger.name}.part").warning("early %d", 1)
        assert not lines
        logger.addHandler(handler)
        raise KeyError
    logger.warning("late")
    assert lines == ["early 1", "late"]


# Kills rank 1 in iteration 5 of the first round, and notes every iteration with the process's place.
REGISTER = """
import os
import signal
from pathlib import Path

from detectron2.utils import comm

from gmm_anomaly.engine.train_loop import TrainLoop

attempt, run_step = os.environ["TORCHELASTIC_RESTART_COUNT"], TrainLoop.run_step


def noted(self):
    place = (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size())
    with Path({folder!r}, f"attempt_{{attempt}}_{{comm.get_rank()}}").open("a") as file:
        print(self.iter, *place, file=file)
    if (self.iter, comm.get_rank(), attempt) == (5, 1, "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    run_step(self)


TrainLoop.run_step = noted
"""


def test_torchrun_trains_and_a_killed_worker_restarts_from_the_last_checkpoint(no_torchrun, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    # Left by another run, which nobody asked to resume.
    (output / "last_checkpoint").write_text("model_final.pth")
    (output / "model_final.pth").write_text("another run's")
    (tmp_path / "register.py").write_text(REGISTER.format(folder=str(tmp_path)))
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--max-restarts", "1", "--monitor-interval", "0.1", str(ROOT / "train_net.py"),
        "--config-file", str(CONFIG),
        "--register", str(tmp_path / "register.py"), *map(str, TINY), "OUTPUT_DIR", str(output),
        "MODEL.DECODER.NORM", "SyncBN",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    for rank in range(2):
        rounds = [(tmp_path / f"attempt_{attempt}_{rank}").read_text().splitlines() for attempt in range(2)]
        place = f"{rank} 2 {rank} 2"
        # Rank 0 may be stopped before it gets to iteration 5.
        assert rounds[0][:5] == [f"{iteration} {place}" for iteration in range(5)]
        # The checkpoint after iteration 3 was the last one.
        assert rounds[1] == [f"{iteration} {place}" for iteration in (4, 5)]
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 5
    log = (output / "log.txt").read_text()
    assert log.count("torchrun has restarted the processes: resuming from model_0000003.pth") == 1
    # One line in each round.
    assert log.count("SyncBN needs GPUs; on cpu BN is used instead") == 2
    assert done.stdout.count("SyncBN needs GPUs; on cpu BN is used instead") == 2
