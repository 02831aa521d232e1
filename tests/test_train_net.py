"""The command line on tiny synthetic streets: train, evaluate, resume, two processes, bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_{}.yaml"


def command_line(
    output: Path, *overrides: object, classifier: str = "gmm", flags: tuple[str, ...] = ()
) -> list[str]:
    tiny = {
        "OUTPUT_DIR": output,
        "DATASETS.SYNTHETIC.CACHE_DIR": output.parent / "frames",
        "DATASETS.SYNTHETIC.HEIGHT": 64,
        "DATASETS.SYNTHETIC.WIDTH": 128,
        "DATASETS.SYNTHETIC.NUM_TRAIN": 6,
        "DATASETS.SYNTHETIC.NUM_VAL": 2,
        "DATASETS.SYNTHETIC.NUM_ANOMALY": 2,
        "INPUT.CROP.SIZE": "[64, 64]",
        "MODEL.BACKBONE.WEIGHTS": "",
        "MODEL.GMM.WARM_START_FEATURES": 20,
        # So short a training may not have seen the rarest class.
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.NUM_VISUALIZATIONS": 1,
        "TEST.SAVE_SCORES": True,
    }
    pairs = [str(part) for pair in tiny.items() for part in pair]
    return [
        "--num-gpus", "0", "--config-file", str(CONFIG).format(classifier), *flags,
        *pairs, *map(str, overrides),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def train_net():
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda arguments: module.main(module.parser().parse_args(arguments))


@pytest.fixture(scope="module")
def trained(train_net, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    train_net(command_line(output))
    return output


def test_training_leaves_what_it_promises(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["iteration"] == 6
    closed, anomaly = (results["datasets"][f"synthetic_street_{split}"] for split in ("val", "anomaly"))
    assert 0 <= closed["sem_seg"]["mIoU"] <= 100 and "IoU-road" in closed["sem_seg"]
    scores = ["hybrid", "gmm_density", "feature_distance", "msp", "max_logit", "energy", "entropy"]
    assert list(anomaly["anomaly"]) == [*scores, *(f"{score}+dilated_smoothing" for score in scores)]
    for numbers in anomaly["anomaly"].values():
        assert numbers["protocol"] == "pooled"
        assert all(0 <= numbers[metric] <= 1 for metric in ("AP", "AUROC", "FPR95"))
    for file in ("model_final.pth", "config.yaml", "log.txt", "metrics.json"):
        assert (trained / file).is_file(), file
    assert list(trained.glob("events.out.tfevents.*"))
    overlay = cv2.imread(str(next((trained / "visualizations" / "synthetic_street_anomaly").glob("*.png"))))
    assert overlay is not None and overlay.std() > 10
    score = np.load(next((trained / "scores" / "synthetic_street_anomaly" / "gmm_density").glob("*.npy")))
    assert score.shape == (64, 128) and score.dtype == np.float16


def test_tensorboard_has_scalars_and_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    tags = events.Tags()
    assert {"loss_ce", "loss_contrast", "lr", "gmm/momentum", "gmm/memory_fill"} <= set(tags["scalars"])
    assert any(
        "synthetic_street_anomaly" in tag and "AP" in tag and "pooled" in tag for tag in tags["scalars"]
    )
    assert any(tag.startswith("synthetic_street_anomaly/") for tag in tags["images"])


@pytest.mark.parametrize("mode", ["--eval-only", "--fit-feature-distance"])
def test_evaluation_and_calibration_afterwards_give_the_same_numbers(trained, train_net, tmp_path, mode):
    weights = trained / "model_final.pth"
    output = tmp_path / "again"
    if mode == "--fit-feature-distance":
        state = torch.load(weights, weights_only=True)["model"]
        weights = tmp_path / "without_distances.pth"
        bare = {key: value for key, value in state.items() if not key.startswith("feature_distance.")}
        assert len(bare) < len(state)
        torch.save({"model": bare}, weights)
    train_net(
        command_line(
            output, "MODEL.WEIGHTS", weights, "DATASETS.SYNTHETIC.CACHE_DIR", trained.parent / "frames",
            flags=(mode,),
        )
    )  # fmt: skip
    assert (output / "model_with_distances.pth").is_file() == (mode == "--fit-feature-distance")
    first, again = (
        json.loads((folder / "results.json").read_text())["datasets"] for folder in (trained, output)
    )
    for metric in ("AP", "AUROC", "FPR95"):
        for score, numbers in first["synthetic_street_anomaly"]["anomaly"].items():
            found = again["synthetic_street_anomaly"]["anomaly"][score][metric]
            assert found == pytest.approx(numbers[metric], abs=1e-3), (score, metric)
    assert again["synthetic_street_val"]["sem_seg"]["mIoU"] == pytest.approx(
        first["synthetic_street_val"]["sem_seg"]["mIoU"], abs=0.1
    )


def test_softmax_twin_and_own_data_by_registration(train_net, tmp_path):
    """A data set of one's own, registered by a file of three lines, works with --eval-only at once."""
    images, labels = tmp_path / "data" / "images", tmp_path / "data" / "labels"
    rng = np.random.default_rng(0)
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for index in range(2):
        cv2.imwrite(str(images / f"{index}.png"), rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
        cv2.imwrite(str(labels / f"{index}.png"), rng.integers(0, 2, (40, 56), dtype=np.uint8))
    register = tmp_path / "mine.py"
    register.write_text(
        "from gmm_anomaly.data import register_anomaly_dataset\n"
        f"register_anomaly_dataset('my_anomalies', {str(images)!r}, {str(labels)!r})\n"
    )
    output = tmp_path / "softmax"
    train_net(command_line(output, "SOLVER.MAX_ITER", 1, classifier="softmax"))
    evaluated = tmp_path / "mine"
    train_net(
        command_line(
            evaluated, "MODEL.WEIGHTS", output / "model_final.pth", "DATASETS.TEST", "('my_anomalies',)",
            classifier="softmax", flags=("--register", str(register), "--eval-only"),
        )
    )  # fmt: skip
    found = json.loads((evaluated / "results.json").read_text())["datasets"]["my_anomalies"]["anomaly"]
    # Labels are noise: any score is right about half of the time.
    scores = ["hybrid", "feature_distance", "msp", "max_logit", "energy", "entropy"]
    assert list(found) == [*scores, *(f"{score}+dilated_smoothing" for score in scores)]
    assert found["msp"]["AUROC"] == pytest.approx(0.5, abs=0.1)


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, **options,
    )  # fmt: skip


def test_killed_run_resumes_where_it_saved(tmp_path):
    output = tmp_path / "run"
    arguments = command_line(output, "SOLVER.MAX_ITER", 4000, "SOLVER.CHECKPOINT_PERIOD", 3)
    with (tmp_path / "out").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *arguments],
            cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.time() + 240
        while (
            not (output / "model_0000005.pth").is_file() and process.poll() is None and time.time() < deadline
        ):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = (output / "last_checkpoint").read_text()
    saved = torch.load(output / last, weights_only=True)["iteration"]
    assert saved >= 5
    finished = run(
        command_line(output, "SOLVER.MAX_ITER", saved + 3, "DATASETS.TEST", "()", flags=("--resume",)),
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert f"Starting training from iteration {saved + 1}" in finished.stdout + finished.stderr
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == saved + 2


def test_two_processes_train_and_evaluate_on_the_cpu(tmp_path):
    output = tmp_path / "run"
    arguments = command_line(output, "SOLVER.MAX_ITER", 2, "MODEL.DEVICE", "cpu", "TEST.SAVE_SCORES", False)
    arguments[1] = "2"
    finished = run([*arguments[:2], "--dist-url", "auto", *arguments[2:]], timeout=400)
    assert finished.returncode == 0, finished.stderr[-2000:]
    results = json.loads((output / "results.json").read_text())
    images = results["datasets"]["synthetic_street_anomaly"]["anomaly"]["gmm_density"]["images"]
    assert images == 2


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("TEST.SCORES", "['density']"), r"TEST\.SCORES: unknown score 'density'; known are"),
        (("TEST.COMPONENT_TRACK", "road"), "TEST.COMPONENT_TRACK: expected 'anomaly', 'obstacle' or 'none'"),
        (("MODEL.CLASSIFIER.NUM_CLASSES", 7), "has 10 classes, MODEL.CLASSIFIER.NUM_CLASSES is 7"),
        (("DATASETS.TEST", "('synthetic_street_vall',)"), "synthetic_street_vall"),
        (("MODEL.META_ARCHITECTURE", "Segmentor"), "MODEL.META_ARCHITECTURE: unknown name 'Segmentor'"),
    ],
)
def test_bad_keys_stop_before_training(train_net, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train_net(command_line(tmp_path / "run", *overrides))
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_missing_config_file_is_named(train_net):
    with pytest.raises(FileNotFoundError, match="--config-file: no file configs/none.yaml"):
        train_net(["--config-file", "configs/none.yaml"])


def test_nan_loss_stops_and_keeps_the_last_checkpoint(train_net, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"not finite at iteration \d+: loss_ce = "):
        train_net(
            command_line(
                output, "SOLVER.BASE_LR", 1e30, "SOLVER.OPTIMIZER", "SGD", "SOLVER.WARMUP_ITERS", 0,
                "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 50,
            )
        )  # fmt: skip
    checkpoint = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)
    assert "model" in checkpoint and not (output / "model_final.pth").exists()
