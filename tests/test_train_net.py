"""The command line on tiny synthetic streets: train, evaluate, two processes, bad input."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

import train_net as module

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_{}.yaml"


def command_line(
    output: Path, *overrides: object, classifier: str = "gmm", flags: tuple[object, ...] = ()
) -> list[str]:
    tiny = {
        "OUTPUT_DIR": output, "MODEL.DEVICE": "cpu", "DATASETS.SYNTHETIC.CACHE_DIR": output.parent / "frames",
        "DATASETS.SYNTHETIC.HEIGHT": 64, "DATASETS.SYNTHETIC.WIDTH": 128, "DATASETS.SYNTHETIC.NUM_TRAIN": 6,
        "DATASETS.SYNTHETIC.NUM_VAL": 2, "DATASETS.SYNTHETIC.NUM_ANOMALY": 2, "INPUT.CROP.SIZE": "[64, 64]",
        "MODEL.TIMM.NAME": "test_efficientnet", "MODEL.BACKBONE.WEIGHTS": "",
        "MODEL.GMM.WARM_START_FEATURES": 20, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 3,
        "SOLVER.CHECKPOINT_PERIOD": 2, "DATALOADER.NUM_WORKERS": 0, "TEST.NUM_VISUALIZATIONS": 1,
        "TEST.SAVE_SCORES": True,
    }  # fmt: skip
    pairs = [part for pair in tiny.items() for part in pair]
    return list(map(str, ["--config-file", str(CONFIG).format(classifier), *flags, *pairs, *overrides]))


def train_net(arguments):
    module.main(module.parser().parse_args(arguments))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    train_net(command_line(output, flags=("--num-gpus", 0)))
    return output


@pytest.mark.parametrize("start", [("MODEL.GMM.WARM_START", False), ("MODEL.GMM.WARM_START_FEATURES", 9999)])
def test_the_shortest_training_is_evaluated_and_names_unseen_classes(tmp_path, start):
    output = tmp_path / "run"
    # Crops so small that not every class is in one.
    more = (
        "INPUT.CROP.SIZE", [32, 32], "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1
    )  # fmt: skip
    train_net(command_line(output, *more, *start, flags=("--num-gpus", 0)))
    results, log = json.loads((output / "results.json").read_text()), (output / "log.txt").read_text()
    fitted = torch.load(output / "model_final.pth", weights_only=True)["model"]["classifier.bank.fitted"]
    names = MetadataCatalog.get("synthetic_street_val").stuff_classes
    unseen = [name for name, known in zip(names, fitted.any(1), strict=True) if not known]
    assert 0 < len(unseen) < 10 and results["unseen_classes"] == unseen and results["iteration"] == 2
    assert f"leave them out: {', '.join(unseen)}." in log
    assert ("Not evaluated at iteration 0" in log) == (start[0] != "MODEL.GMM.WARM_START")


def test_training_leaves_what_it_promises(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["iteration"] == 3 and results["weights"] == str(trained / "model_final.pth")
    closed, anomaly = (results["datasets"][f"synthetic_street_{split}"] for split in ("val", "anomaly"))
    assert 0 <= closed["sem_seg"]["mIoU"] <= 100 and "IoU-road" in closed["sem_seg"]
    scores = ["hybrid", "gmm_density", "feature_distance", "msp", "max_logit", "energy", "entropy"]
    assert list(anomaly["anomaly"]) == [*scores, *(f"{score}+dilated_smoothing" for score in scores)]
    for numbers in anomaly["anomaly"].values():
        assert numbers["protocol"] == "pooled"
        assert all(0 <= numbers[metric] <= 1 for metric in ("AP", "AUROC", "FPR95"))
    for file in ("model_final.pth", "config.yaml", "log.txt", "metrics.json"):
        assert (trained / file).is_file(), file
    overlay = cv2.imread(str(next((trained / "visualizations" / "synthetic_street_anomaly").glob("*.png"))))
    assert overlay is not None and overlay.std() > 10
    score = np.load(next((trained / "scores" / "synthetic_street_anomaly" / "gmm_density").glob("*.npy")))
    assert score.shape == (64, 128) and score.dtype == np.float16


def test_tensorboard_has_scalars_and_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(trained)).Reload().Tags()
    assert set(tags["scalars"]) >= {
        "loss_ce", "loss_contrast", "lr", "gmm/momentum", "gmm/memory_fill", "gmm/mean_scale",
        "gmm/empty_components", "gmm/assignment_entropy", "gmm/effective_components",
        "gmm/held_out_log_likelihood",
    }  # fmt: skip
    assert "gmm/embedding" in tags["images"]
    assert any(
        "synthetic_street_anomaly" in tag and "AP" in tag and "pooled" in tag for tag in tags["scalars"]
    )
    assert any(tag.startswith("synthetic_street_anomaly/") for tag in tags["images"])


@pytest.mark.parametrize(
    "mode", ["--eval-only", "--eval-only --resume", "--resume", "--fit-feature-distance"]
)
def test_evaluation_and_distances_afterwards_give_the_same_numbers(trained, tmp_path, mode):
    used = weights = trained / "model_final.pth"
    output = tmp_path / "again"
    fits, flags = mode == "--fit-feature-distance", mode.split()
    if "--resume" in flags:
        # Detectron2's idiom: the run's last checkpoint, wherever it started from. The training had ended.
        shutil.copytree(trained, output)
        used, weights = output / "model_final.pth", "start.pth"
    if fits:
        used = output / "model_with_distances.pth"
        state = torch.load(weights, weights_only=True)["model"]
        weights = tmp_path / "without.pth"
        bare = {key: value for key, value in state.items() if not key.startswith("feature_distance.")}
        assert len(bare) < len(state)
        torch.save({"model": bare}, weights)
    frames = ("DATASETS.SYNTHETIC.CACHE_DIR", trained.parent / "frames")
    train_net(command_line(output, "MODEL.WEIGHTS", weights, *frames, flags=flags))
    assert json.loads((output / "results.json").read_text())["weights"] == str(used)
    assert (output / "model_with_distances.pth").is_file() == fits
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


def test_softmax_twin_and_own_data_by_registration(tmp_path, monkeypatch):
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
    output, evaluated = tmp_path / "softmax", tmp_path / "mine"
    expected = ("TEST.EXPECTED_RESULTS", '[["synthetic_street_val/sem_seg", "mIoU", 50, 50]]')
    train_net(command_line(output, "SOLVER.MAX_ITER", 1, *expected, classifier="softmax"))
    # What is not on disk of several sets is left out.
    monkeypatch.setenv("GMM_ANOMALY_STREET_HAZARDS", str(tmp_path / "nowhere"))
    tests = "('my_anomalies', 'street_hazards_test')"
    keys = ("MODEL.WEIGHTS", output / "model_final.pth", "DATASETS.TEST", tests)
    expected = ("TEST.EXPECTED_RESULTS", '[["my_anomalies/anomaly/pooled/msp", "AUROC", 9, 1]]')
    flags = ("--register", register, "--eval-only")
    with pytest.raises(ValueError, match=r"my_anomalies/anomaly/pooled/msp/AUROC is 0.*, expected 9 \+- 1"):
        train_net(command_line(evaluated, *keys, *expected, classifier="softmax", flags=flags))
    found = json.loads((evaluated / "results.json").read_text())["datasets"]["my_anomalies"]["anomaly"]
    # Labels are noise: any score is right about half of the time.
    scores = ["hybrid", "feature_distance", "msp", "max_logit", "energy", "entropy"]
    assert list(found) == [*scores, *(f"{score}+dilated_smoothing" for score in scores)]
    assert found["msp"]["AUROC"] == pytest.approx(0.5, abs=0.1)


def test_two_processes_train_and_evaluate_on_the_cpu(tmp_path, monkeypatch):
    """By --num-gpus; torchrun: test_launching.py. Forked from a process that has imported torch, for time."""
    from detectron2.engine import launch

    forked = partial(torch.multiprocessing.start_processes, start_method="forkserver")
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["train_net"])
    monkeypatch.setattr(sys.modules[launch.__module__].mp, "start_processes", forked)
    output = tmp_path / "run"
    scores = ("TEST.SCORES", "['gmm_density']", "TEST.POSTPROCESS", "[]", "TEST.SAVE_SCORES", False)
    arguments = command_line(output, "SOLVER.MAX_ITER", 2, *scores, flags=("--num-gpus", 2))
    module.launch(module.main, module.parser().parse_args(arguments))
    anomaly = json.loads((output / "results.json").read_text())["datasets"]["synthetic_street_anomaly"]
    assert anomaly["anomaly"]["gmm_density"]["images"] == 2
    assert "World size: 2" in (output / "log.txt").read_text()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("TEST.SCORES", "['density']"), r"TEST\.SCORES: unknown score 'density'; known are"),
        (("TEST.COMPONENT_TRACK", "road"), "TEST.COMPONENT_TRACK: expected one of '', 'anomaly'"),
        (("MODEL.CLASSIFIER.NUM_CLASSES", 7), "has 10 classes, MODEL.CLASSIFIER.NUM_CLASSES is 7"),
        (("DATASETS.TEST", "('synthetic_street_vall',)"), "synthetic_street_vall"),
        (("DATASETS.TEST", "('road_anomaly',)"), "road_anomaly: there is no folder .* Download"),
        (("MODEL.META_ARCHITECTURE", "Segmentor"), "MODEL.META_ARCHITECTURE: unknown name 'Segmentor'"),
    ],
)
def test_bad_keys_stop_before_anything_is_written(tmp_path, monkeypatch, overrides, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises((ValueError, OSError), match=message):
        train_net(command_line(tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    output = tmp_path / "run"
    keys = (
        "SOLVER.BASE_LR", 1e30, "SOLVER.OPTIMIZER", "SGD", "SOLVER.WARMUP_ITERS", 0, "DATASETS.TEST", "()",
        "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 50, "MODEL.FEATURE_DISTANCE.FEATURES", "[]",
        "TEST.SCORES", "[]",
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"not finite at iteration \d+: the loss, .*\(loss_ce = "):
        train_net(command_line(output, *keys))
    checkpoint = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["model"].values())
    assert not (output / "model_final.pth").exists()
