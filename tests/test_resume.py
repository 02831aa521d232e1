"""Runs that are killed or interrupted, as processes: they end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gmm_anomaly.engine.interruption import Interrupted, Interruption

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
ITERATIONS = 24


def command(output: Path, *overrides: object, flags: tuple[str, ...] = ()) -> list[str]:
    tiny = {
        "OUTPUT_DIR": output,
        "SEED": 5,
        "DATASETS.SYNTHETIC.CACHE_DIR": output.parent / "frames",
        "DATASETS.SYNTHETIC.HEIGHT": 64,
        "DATASETS.SYNTHETIC.WIDTH": 128,
        "DATASETS.SYNTHETIC.NUM_TRAIN": 5,
        "DATASETS.SYNTHETIC.NUM_VAL": 2,
        "DATASETS.SYNTHETIC.NUM_ANOMALY": 2,
        "DATASETS.TEST": "()",
        "INPUT.CROP.SIZE": "[48, 48]",
        "MODEL.BACKBONE.WEIGHTS": "",
        "MODEL.FEATURE_DISTANCE.FEATURES": "[]",
        "TEST.SCORES": "['gmm_density']",
        # Small enough for rings to be full, and classes to start, before and after the interruptions.
        "MODEL.GMM.MEMORY_SIZE": 40,
        "MODEL.GMM.WARM_START_FEATURES": 30,
        "MODEL.GMM.HEALTH_PERIOD": 0,
        # A loss with draws of its own.
        "MODEL.GMM.SAMPLED_CONTRAST.WEIGHT": 0.05,
        "MODEL.GMM.SAMPLED_CONTRAST.START": 4,
        "MODEL.GMM.SAMPLED_CONTRAST.RAMP": 1,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "DATALOADER.NUM_WORKERS": 0,
    }
    pairs = [str(part) for pair in tiny.items() for part in pair]
    return [
        sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), "--num-gpus", "0",
        "--config-file", str(CONFIG), *flags, *pairs, *map(str, overrides),
    ]  # fmt: skip


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open("a") as file:
        return subprocess.Popen(
            arguments, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def wait_for_iteration(
    process: subprocess.Popen, output: Path, iteration: int, *, log: Path, starts: int
) -> None:
    """Until the run, the one of that number in the log, trains, and the iteration's checkpoint is there."""
    deadline, tag = time.time() + 240, output / "last_checkpoint"
    while process.poll() is None and time.time() < deadline:
        # On a busy machine the run before may have come further than it should before it was dead.
        begun = log.read_text().count("Starting training from iteration") == starts
        if begun and tag.is_file() and tag.read_text() >= f"model_{iteration:07d}.pth":
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    log = output.parent / "log"
    # Its loader has workers; those of the interrupted ones have none.
    assert start(command(output, "DATALOADER.NUM_WORKERS", 2), log).wait(400) == 0, log.read_text()[-3000:]
    return torch.load(output / "model_final.pth", weights_only=True)


def same(found, expected, where: str = "") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            same(found[index], value, f"{where}[{index}]")
    else:
        assert found == expected, where


def test_a_run_killed_several_times_ends_with_the_same_bits(uninterrupted, tmp_path):
    """Weights, mixture, statistics of its memory, optimiser and schedule."""
    output, log = tmp_path / "run", tmp_path / "log"
    rng = random.Random()
    kills = [rng.randrange(1, ITERATIONS // 3), rng.randrange(ITERATIONS // 2 + 2, ITERATIONS - 6)]
    flags: tuple[str, ...] = ()
    for number, kill in enumerate(kills, start=1):
        process = start(command(output, flags=flags), log)
        wait_for_iteration(process, output, kill, log=log, starts=number)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, log.read_text()[-3000:]
        flags = ("--resume",)
    # The last checkpoint of the last kill is cut off, as by a power failure: the one before is used.
    damaged = output / (output / "last_checkpoint").read_text()
    os.truncate(damaged, damaged.stat().st_size // 2)
    assert start(command(output, flags=flags), log).wait(400) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert f"{damaged} is truncated or damaged" in text and "Going on from the checkpoint before" in text
    assert text.count("Starting training from iteration") == 3
    same(torch.load(output / "model_final.pth", weights_only=True), uninterrupted, f"killed at {kills}")


def test_signals_save_and_exit_with_their_status(uninterrupted, tmp_path):
    """SIGTERM, then Ctrl-C as a terminal sends it, to the workers of the loader too."""
    output, log = tmp_path / "run", tmp_path / "log"
    # No checkpoint but those of the interruptions.
    rare = ("SOLVER.CHECKPOINT_PERIOD", 10000, "DATALOADER.NUM_WORKERS", 1)
    flags: tuple[str, ...] = ()
    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with log.open("a") as file:
            process = subprocess.Popen(
                command(output, *rare, flags=flags), cwd=ROOT, stdout=file, stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
        begun, deadline = log.read_text().count("Starting training"), time.time() + 240
        while log.read_text().count("Starting training") == begun and time.time() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signum)
        assert process.wait(120) == status, log.read_text()[-3000:]
        flags = ("--resume",)
    assert log.read_text().count("a checkpoint written") == 2
    assert start(command(output, *rare, flags=flags), log).wait(400) == 0, log.read_text()[-3000:]
    same(torch.load(output / "model_final.pth", weights_only=True), uninterrupted)
    history = json.loads((output / "checkpoint_history.json").read_text())["checkpoints"]
    assert history[-1] == "model_final.pth" and len(history) == 3


def test_a_folder_that_cannot_be_written_is_named_before_the_first_iteration(tmp_path):
    (tmp_path / "file").write_text("")
    log = tmp_path / "log"
    assert start(command(tmp_path / "file" / "run"), log).wait(120) != 0
    text = log.read_text()
    assert f"OUTPUT_DIR: nothing can be written to {tmp_path / 'file' / 'run'}" in text
    assert "Starting training" not in text


def test_an_evaluation_ends_at_the_first_signal():
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT)
    with interruption.watching():
        with pytest.raises(Interrupted) as caught, interruption.at_once():
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")
        assert caught.value.code == 130
        # One that was asked to end before does not begin.
        with pytest.raises(Interrupted), interruption.at_once():
            raise AssertionError("began")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_ends_the_program_at_once():
    program = (
        "import signal\n"
        "from gmm_anomaly.engine.interruption import Interruption\n"
        "with Interruption().watching():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('goes on', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('still here')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 130 and ended.stdout == "goes on\n"
    assert "SIGINT again: ending at once, without a checkpoint" in ended.stderr
