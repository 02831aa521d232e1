"""How runs of several processes start: torchrun, several machines, contradictions."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_net
from gmm_anomaly.engine import launch as launching
from gmm_anomaly.engine.config import config_overrides
from gmm_anomaly.engine.launch import launch
from gmm_anomaly.engine.output_dir import held_log

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
TORCHRUN = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29511", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


@pytest.fixture
def no_torchrun(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def under_torchrun(no_torchrun):
    for name, value in TORCHRUN.items():
        no_torchrun.setenv(name, value)
    return no_torchrun


def arguments(*command):
    return train_net.parser().parse_args(list(map(str, command)))


def job(args):
    raise AssertionError("no process may start")


@pytest.mark.parametrize(
    "command", [("--num-gpus", 4), ("--num-machines", 2), ("--machine-rank", 1), ("--dist-url", "auto")]
)
def test_arguments_that_contradict_torchrun(under_torchrun, command):
    message = "leave them out under torchrun, which has started 2 processes on this machine and 4 in all"
    with pytest.raises(ValueError, match=message):
        launch(job, arguments("--config-file", CONFIG, *command, "MODEL.DEVICE", "cpu"))
    assert not torch.distributed.is_initialized()


def test_torchrun_needs_a_gpu_for_each_process(under_torchrun):
    under_torchrun.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"2 processes on this machine, which has 1 GPUs\. "):
        launch(job, arguments("--config-file", CONFIG))
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE: each of 4 processes .* found \'cuda:1\'"):
        launch(job, arguments("--config-file", CONFIG, "MODEL.DEVICE", "cuda:1"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--num-gpus", 4), r"4 processes on this machine, which has 2 GPUs\. .*--num-gpus 0 .*DEVICE cpu"),
        (("--num-machines", 2, "--machine-rank", 2, "--dist-url", "tcp://host:1"), "--machine-rank 0 to 1"),
        (("--num-machines", 2), "--num-machines 2: expected --dist-url tcp://HOST:PORT"),
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
    with pytest.raises(ValueError, match=r"--num-gpus: 1 processes on this machine, which has 0 GPUs"):
        launch(job, arguments("--config-file", CONFIG, "--num-gpus", 1))


def test_num_gpus_0_is_a_pair_that_later_ones_override():
    assert config_overrides(arguments("--num-gpus", 0, "SEED", 1)) == ["MODEL.DEVICE", "cpu", "SEED", "1"]
    assert config_overrides(arguments("SEED", 1)) == ["SEED", "1"]


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


# Notes each process's place.
REGISTER = """
from pathlib import Path
from detectron2.utils import comm

place = (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size())
Path({folder!r}, f"rank{{place[0]}}").write_text(str(place))
"""


def test_torchrun_trains_and_evaluates_on_the_cpu(no_torchrun, tiny_streets, tmp_path):
    output = tmp_path / "run"
    (tmp_path / "register.py").write_text(REGISTER.format(folder=str(tmp_path)))
    tiny = [
        *tiny_streets, "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.FEATURE_DISTANCE.FEATURES", [],
        "MODEL.DECODER.NORM", "SyncBN", "TEST.SCORES", ["gmm_density"], "SOLVER.IMS_PER_BATCH", 4,
        "DATASETS.TEST", "('synthetic_street_anomaly',)", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", output,
    ]  # fmt: skip
    # With nothing to go on from, --resume starts.
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
        ROOT / "train_net.py", "--resume", "--config-file", CONFIG, "--register", tmp_path / "register.py",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, command), *map(str, tiny)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == f"({rank}, 2, {rank}, 2)"
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 1
    assert '"images": 2' in (output / "results.json").read_text()
    # One line, of the first process.
    assert (output / "log.txt").read_text().count("SyncBN needs GPUs; on cpu BN is used instead") == 1
