"""Runs that are killed, interrupted or damaged end as if nothing had happened."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

import train_net
from gmm_anomaly.engine.launch import Interrupted, Interruption
from gmm_anomaly.engine.output_dir import locked
from gmm_anomaly.engine.train_loop import TrainLoop

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 12
# Processes that are killed. They are forked from one that has imported torch and the engine, for that takes
# most of the time of so short a run.
PROCESSES = multiprocessing.get_context("forkserver")


def arguments(output: Path, *overrides: object, flags: tuple[object, ...] = ()):
    tiny = {
        "OUTPUT_DIR": output, "SEED": 5, "DATASETS.TEST": "()", "DATASETS.SYNTHETIC.CACHE_DIR": "",
        "DATASETS.SYNTHETIC.HEIGHT": 64, "DATASETS.SYNTHETIC.WIDTH": 128, "DATASETS.SYNTHETIC.NUM_TRAIN": 5,
        "INPUT.CROP.SIZE": "[48, 48]", "MODEL.TIMM.NAME": "test_efficientnet", "MODEL.BACKBONE.WEIGHTS": "",
        "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.FEATURE_DISTANCE.FEATURES": "[]",
        "TEST.SCORES": "['gmm_density']", "MODEL.DECODER.CHANNELS": 16,
        # Small enough for rings to be full, and classes to start, before and after the interruptions.
        "MODEL.GMM.MEMORY_SIZE": 40, "MODEL.GMM.WARM_START_FEATURES": 30, "MODEL.GMM.SAVE_MEMORY": True,
        "MODEL.GMM.EMBED_DIM": 8, "MODEL.GMM.HEALTH_PERIOD": 0, "MODEL.GMM.UPDATE_INTERVAL": 2,
        # A loss with draws of its own.
        "MODEL.GMM.SAMPLED_CONTRAST.WEIGHT": 0.05, "MODEL.GMM.SAMPLED_CONTRAST.START": 3,
        "MODEL.GMM.SAMPLED_CONTRAST.RAMP": 1,
        "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": ITERATIONS, "SOLVER.CHECKPOINT_PERIOD": 1,
        "SOLVER.WARMUP_ITERS": 2,
        "DATALOADER.NUM_WORKERS": 0,
    }  # fmt: skip
    config = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
    pairs = [part for pair in tiny.items() for part in pair]
    command = ["--num-gpus", 0, "--config-file", config, *flags, *pairs, *overrides]
    return train_net.parser().parse_args(list(map(str, command)))


# What happens to a process after a step, in a group of its own, workers of its loader included.
FAULT = """
import multiprocessing, os, signal, torch
from gmm_anomaly.engine.train_loop import TrainLoop

os.setsid()
# As in a program that was started from a shell.
multiprocessing.set_start_method("fork", force=True)
run_step, save = TrainLoop.run_step, torch.save

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def signalled(name):
    os.killpg(0, getattr(signal, name))

def killed_while_saving():
    def half(data, path):
        save(data, path)
        os.truncate(path, path.stat().st_size // 2)
        killed()
    torch.save = half

def faulty(self):
    run_step(self)
    if self.iter == {iteration}:
        {fault}

TrainLoop.run_step = faulty
"""


def run(output: Path, *overrides, fault: str, iteration: int, flags=()) -> int:
    """The exit status of a process that something happens to."""
    file = output.parent / "fault.py"
    file.write_text(FAULT.format(fault=fault, iteration=iteration))
    PROCESSES.set_forkserver_preload(["train_net"])
    args = arguments(output, *overrides, flags=("--register", file, *flags))
    process = PROCESSES.Process(target=train_net.main, args=(args,))
    process.start()
    process.join()
    return process.exitcode


def finish(output: Path, *overrides: object) -> dict:
    train_net.main(arguments(output, *overrides, flags=("--resume",)))
    return torch.load(output / "model_final.pth", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    # Its loader has workers, and --resume finds nothing to go on from.
    return finish(tmp_path_factory.mktemp("whole") / "run", "DATALOADER.NUM_WORKERS", 2)


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


def test_a_run_killed_three_times_and_damaged_ends_with_the_same_bits(uninterrupted, tmp_path, caplog):
    """Weights, mixture, statistics of its memory, optimiser and schedule."""
    output = tmp_path / "run"
    flags: tuple[str, ...] = ()
    for fault, iteration, last in (
        ("killed()", 1, "model_0000000.pth"),
        ("killed_while_saving()", 5, "model_0000004.pth"),
        ("killed()", 9, "model_0000008.pth"),
    ):
        status = run(output, fault=fault, iteration=iteration, flags=flags)
        assert status == -signal.SIGKILL and (output / "last_checkpoint").read_text() == last
        assert (output / ".checkpoint.partial").exists() == ("saving" in fault)
        flags = ("--resume",)
    # The last checkpoint is cut off, as by a power failure: the one before is used.
    damaged = output / last
    os.truncate(damaged, damaged.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        same(finish(output), uninterrupted)
    assert f"{damaged} is truncated or damaged" in caplog.text
    assert "Going on from the checkpoint before" in caplog.text
    history = json.loads((output / "checkpoint_history.json").read_text())["checkpoints"]
    assert history == ["model_0000009.pth", "model_0000010.pth", "model_final.pth"]
    assert sorted(path.name for path in output.glob("*.pth")) == history


def test_signals_save_and_exit_with_their_status(uninterrupted, tmp_path):
    """SIGTERM, then Ctrl-C as a terminal sends it, to the workers of the loader too."""
    output = tmp_path / "run"
    # No checkpoint but those of the interruptions.
    rare = ("SOLVER.CHECKPOINT_PERIOD", 10000, "DATALOADER.NUM_WORKERS", 1)
    flags: tuple[str, ...] = ()
    for name, iteration, status in (("SIGTERM", 2, 143), ("SIGINT", 6, 130)):
        fault = f"signalled('{name}')"
        assert run(output, *rare, fault=fault, iteration=iteration, flags=flags) == status
        assert (output / "last_checkpoint").read_text() == f"model_{iteration:07d}.pth"
        flags = ("--resume",)
    same(finish(output, *rare), uninterrupted)


def test_a_run_goes_on_without_the_features_of_its_memory(uninterrupted, tmp_path):
    """As by default: the statistics are there, so the mixtures are nearly those of the uninterrupted run."""
    output, small = tmp_path / "run", ("MODEL.GMM.SAVE_MEMORY", False, "SOLVER.CHECKPOINT_PERIOD", 6)
    train_net.main(arguments(output, *small))
    (output / "last_checkpoint").write_text("model_0000005.pth")
    middle = torch.load(output / "model_0000005.pth", weights_only=True)["model"]
    assert not [name for name in middle if "ring" in name] and middle["classifier.bank.memory.count"].any()
    found, expected = finish(output, *small)["model"], uninterrupted["model"]
    for name in ("fitted", "started"):
        assert torch.equal(found[f"classifier.bank.{name}"], expected[f"classifier.bank.{name}"]), name
    count = "classifier.bank.memory.count"
    assert (found[count] >= middle[count]).all() and (found[count] > middle[count]).any()
    # Classes that start later do so by k-means of features that are nearly the same: its optimum may not be.
    started = middle["classifier.bank.started"]
    assert started.any()
    means = torch.cosine_similarity(
        found["classifier.bank.means"][started], expected["classifier.bank.means"][started], dim=-1
    )
    assert means.min() > 0.95 and not torch.equal(means, torch.ones_like(means))


def test_rates_of_the_config_hold_and_another_network_is_refused(tmp_path):
    """The oracle of the rates is a run that had them from the start."""
    run, begun = tmp_path / "run", tmp_path / "begun"
    keys = ("SOLVER.OPTIMIZER", "SGD", "MODEL.CLASSIFIER.NAME", "softmax", "TEST.SCORES", "[]")
    # Without decay there are fewer groups of parameters.
    other = ("SOLVER.BASE_LR", 0.003, "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.MOMENTUM", 0.3)
    train_net.main(arguments(run, *keys, "SOLVER.MAX_ITER", 2))
    for change, message in (
        (("SOLVER.OPTIMIZER", "ADAMW"), "checkpoint has SOLVER.OPTIMIZER SGD, the config ADAMW"),
        (("MODEL.BACKBONE.FREEZE_AT", 5), r"first backbone\..*BACKBONE.FREEZE_AT"),
        (("MODEL.CLASSIFIER.NAME", "gmm"), r"first classifier\..*CLASSIFIER.NAME"),
    ):
        with pytest.raises(ValueError, match=f"--resume: .*{message}"):
            finish(run, *keys, *change)
    found, expected = (
        finish(folder, *keys, *other)["trainer"]["_trainer"]["optimizer"] for folder in (run, begun)
    )
    same(found["param_groups"], expected["param_groups"])
    for place, state in expected["state"].items():
        assert found["state"][place]["momentum_buffer"].shape == state["momentum_buffer"].shape


def test_batch_and_schedule_take_effect_or_are_refused(tmp_path, monkeypatch):
    """A refused run leaves config.yaml as it was."""
    run, keys = tmp_path / "run", ("MODEL.CLASSIFIER.NAME", "softmax", "TEST.SCORES", "[]")
    train_net.main(arguments(run, *keys, "SOLVER.MAX_ITER", 2))
    written = (run / "config.yaml").read_text()
    for change, message in (
        (("SOLVER.MAX_ITER", 1), "has had 2 iterations, SOLVER.MAX_ITER is 1"),
        (("SOLVER.REFERENCE_WORLD_SIZE", 2), "iterations were of 2 images, but SOLVER.REFERENCE_WORLD_SIZE"),
    ):
        with pytest.raises(ValueError, match=f"--resume: .*{message}"):
            finish(run, *keys, *change)
        assert (run / "config.yaml").read_text() == written
    seen, step = [], TrainLoop.run_step
    monkeypatch.setattr(
        TrainLoop, "run_step", lambda self: (step(self), seen.append(self.data_loader.dataset.batch_size))
    )
    state = finish(run, *keys, "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 4)["trainer"]
    assert seen == [4] and state["batch"] == 4
    assert "SOLVER.IMS_PER_BATCH was 2, is 4 from iteration 2 on" in (run / "log.txt").read_text()
    assert "IMS_PER_BATCH: 4" in (run / "config.yaml").read_text()


def test_a_rerun_does_not_go_on_with_the_curves_of_the_run_before(tmp_path):
    run = tmp_path / "run"
    keys = ("MODEL.CLASSIFIER.NAME", "softmax", "TEST.SCORES", "[]")
    train_net.main(arguments(run, *keys, "SOLVER.MAX_ITER", 3))
    first = (run / "metrics.json").read_text()
    (run / "results.json").write_text("{}")
    train_net.main(arguments(run, *keys, "SOLVER.MAX_ITER", 2))
    assert (run / "earlier_1" / "metrics.json").read_text() == first
    lines = (run / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1 and not (run / "results.json").exists()
    # A run that goes on keeps its own.
    finish(run, *keys, "SOLVER.MAX_ITER", 3)
    lines = (run / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2]
    assert not (run / "earlier_2").exists()


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused before it writes anything; the lock of a process that is killed is free, though a
    worker of it lives on."""
    output, (ours, theirs) = tmp_path / "run", multiprocessing.Pipe()
    child = os.fork()
    if not child:
        with locked(output):
            # It inherits the open file.
            worker = os.fork()
            if worker:
                theirs.send(worker)
            signal.pause()
    worker = ours.recv()
    try:
        for flags in ((), ("--eval-only",), ("--resume",)):
            with pytest.raises(ValueError, match=f"another run, process {child} on .* writing into {output}"):
                train_net.main(arguments(output, flags=flags))
        assert [path.name for path in output.iterdir()] == [".lock"]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with locked(output):
            assert (output / ".lock").read_text().startswith(f"process {os.getpid()} ")
    finally:
        os.kill(worker, signal.SIGKILL)


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


def forked(work, output: Path) -> int:
    """The exit status of ``work`` in a fork of this process, whose output goes to a file."""
    child = os.fork()
    if not child:
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 2)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_signal_ends_the_program_at_once(tmp_path):
    def work():
        with Interruption().watching():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    assert forked(work, tmp_path / "out") == 130
    said = (tmp_path / "out").read_text().split("\n")
    assert [line.split(":")[0] for line in said if line] == ["SIGTERM", "SIGINT again"]


def test_a_worker_that_was_just_forked_leaves_signals_to_the_training(tmp_path):
    interruption = Interruption()
    with interruption.watching():
        assert forked(lambda: signal.raise_signal(signal.SIGTERM), tmp_path / "out") == 0
        assert (tmp_path / "out").read_text() == "" and interruption.signum is None
