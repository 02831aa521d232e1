"""Training, fitting and evaluation in two real gloo processes, against one process where the
answer must be the same.

Run as a script, this file is two ranks of a process group, which write what they found into a folder.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import build_model

from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.data import ClassBalancedSampler
from gmm_anomaly.data.build import build_train_loader, run_seed
from gmm_anomaly.engine import (
    EMHook,
    build_config,
    evaluate,
    fit_feature_distance,
    fit_mixture,
    fitting_config,
)
from gmm_anomaly.engine.hooks import PrototypeHook
from gmm_anomaly.engine.train_loop import TrainLoop
from gmm_anomaly.engine.trainer import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 10
STEPS = 5
# What features of rank 1 are multiplied by in each step of some trainings.
NAN = [1.0, 1.0, 1.0, float("nan"), 1.0]
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.BACKBONE.WEIGHTS", "",
    "MODEL.CHANNELS_LAST", False, "MODEL.GMM.HEALTH_PERIOD", 0,
    "MODEL.DECODER.CHANNELS", 12,
    "MODEL.FEATURE_DISTANCE.FEATURES", [], "INPUT.MIN_SIZE_TEST", 0, "INPUT.CROP.SIZE", [32, 32],
    "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.CACHE_DIR", "",
    "DATASETS.SYNTHETIC.NUM_TRAIN", 5, "DATASETS.SYNTHETIC.NUM_VAL", 3, "DATASETS.SYNTHETIC.NUM_ANOMALY", 3,
    "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "TEST.NUM_VISUALIZATIONS", 0,
]  # fmt: skip
# By name: classifier and further keys of a training.
TRAININGS = {
    "guided mixtures with sampled contrast": (
        "gmm", "MODEL.GMM.SAMPLED_CONTRAST.WEIGHT", 0.5, "MODEL.GMM.SAMPLED_CONTRAST.START", 4,
        "MODEL.GMM.SAMPLED_CONTRAST.RAMP", 0,
        "MODEL.GMM.SAMPLED_CONTRAST.MIN_FILL", 0.0, "MODEL.GMM.WARM_START_FEATURES", 5,
        "MODEL.GMM.UPDATE_INTERVAL", 1, "MODEL.GMM.GUIDE_WEIGHT", 1.0,
    ),
    "running-mean prototypes": ("prototype", "MODEL.PROTOTYPE.MOMENTUM", 0.99),
    "NaN in a step of rank 1 is skipped": ("gmm", "SOLVER.NON_FINITE", "skip"),
    "NaN in a step of rank 1 stops": ("gmm",),
}  # fmt: skip


def config(output: Path, classifier: str, *overrides: Any) -> Any:
    scores = ["gmm_density", "energy"] if classifier == "gmm" else ["energy"]
    keys = [*TINY, "MODEL.CLASSIFIER.NAME", classifier, "TEST.SCORES", scores, "OUTPUT_DIR", str(output)]
    file = ROOT / "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml"
    return build_config(str(file), [*keys, *overrides])


def batch(step: int, rank: int) -> list[dict[str, torch.Tensor]]:
    """Two random images, with the labels that a rank may be unlucky to get."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 2, 2), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    if (step, rank) == (1, 1) or step == 2:
        labels.fill_(255)
    if (step, rank) == (3, 0):
        labels.fill_(4)
    return [{"image": image, "sem_seg": label} for image, label in zip(images, labels, strict=True)]


def train(name: str, rank: int, folder: Path) -> dict[str, Any]:
    # Ranks of a real training are seeded apart.
    torch.manual_seed(rank)
    cfg = config(folder, *TRAININGS[name])
    model = build_model(cfg)
    data = [batch(step, rank) for step in range(STEPS)]
    losses: list[dict[str, float]] = []

    def poison(_module: Any, _inputs: Any, features: dict[str, torch.Tensor]) -> None:
        features["level4"] = features["level4"] * NAN[len(losses)]

    if "NaN" in name and rank == 1:
        model.backbone.register_forward_hook(poison)
    optimizer, rule = build_optimizer(cfg, model), cfg.SOLVER.NON_FINITE
    loop = TrainLoop(wrap_distributed(model), data, optimizer, amp=None, non_finite=rule)
    bank = getattr(model, "bank", None)
    em = [] if bank is None else [EMHook.from_config(cfg, bank)]
    loop.register_hooks([*em, PrototypeHook(model)])
    model.register_forward_hook(
        lambda *call: losses.append({name: loss.item() for name, loss in call[2].items()})
    )
    error = ""
    try:
        loop.train(0, STEPS)
    except FloatingPointError as found:
        error = str(found)
    own = ("memory.ring", "memory.slot_state", "warm_start.", "running_", "num_batches_tracked")
    state = {
        name: value for name, value in model.state_dict().items() if not any(part in name for part in own)
    }
    return {"state": state, "losses": losses, "error": error, "skipped": loop.skipped}


def gradient(rank: int) -> torch.Tensor:
    """Of a model on the CPU with other weights and inputs on every rank."""
    torch.manual_seed(rank)
    model = torch.nn.Linear(3, 2, bias=False)
    wrapped = wrap_distributed(model)
    wrapped(torch.arange(12.0).reshape(4, 3) * (rank + 1)).sum().backward()
    return model.weight.grad


def fit_distances_and_evaluate(rank: int, folder: Path) -> dict[str, Any]:
    cfg = config(
        folder, "softmax", "MODEL.FEATURE_DISTANCE.FEATURES", ["level1", "level3"],
        "TEST.SCORES", ["hybrid", "sml"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            # As after a training whose batch norms are not synchronised.
            buffer += 0.1 * rank
    fit_feature_distance(cfg, model)
    fitted = ("feature_distance.", "max_logit_moments.")
    state = {name: value for name, value in model.state_dict().items() if name.startswith(fitted)}
    results = evaluate(cfg, model)
    return {"state": state, "numbers": dict(numbers(results))}


def numbers(results: dict[str, Any], where: tuple[str, ...] = ()) -> Any:
    for key, value in results.items():
        if isinstance(value, dict):
            yield from numbers(value, (*where, key))
        elif isinstance(value, (int, float)):
            yield " ".join((*where, key)), float(value)


def fit(folder: Path, weights: Path) -> dict[str, torch.Tensor]:
    cfg = config(
        folder, "gmm", "MODEL.WEIGHTS", str(weights), "MODEL.GMM.NUM_COMPONENTS", 2,
        "MODEL.GMM.WARM_START", False, "MODEL.GMM.ASSIGNMENT", "em", "MODEL.GMM.MEMORY_SIZE", 300,
        "MODEL.GMM.MOMENTUM_MEAN", 0.5,
        "MODEL.GMM.FIT_PASSES", 2, "MODEL.GMM.UPDATE_INTERVAL", 1, "DATASETS.TEST", (),
    )  # fmt: skip
    torch.manual_seed(0)
    fit_mixture(fitting_config(cfg))
    return torch.load(folder / "mixtures_final.pth", weights_only=True)["model"]


def draw(folder: Path, images: int) -> dict[str, Any]:
    """First inputs of the loader with the class-balanced sampler, and the seed of a run that has none."""
    keys = ["DATALOADER.SAMPLER_TRAIN", "ClassBalancedSampler", "SOLVER.IMS_PER_BATCH", 4]
    loader = build_train_loader(config(folder, "softmax", *keys, "SEED", 3))
    inputs = [item for batch in itertools.islice(loader, images) for item in batch]
    sampler = ClassBalancedSampler(np.eye(7))
    return {
        "images": [item["image"] for item in inputs],
        "labels": [item["sem_seg"] for item in inputs],
        "indices": list(itertools.islice(sampler, 40)),
        "seed": run_seed(config(folder, "softmax", "SEED", -1)),
    }


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    results: dict[str, Any] = {name: train(name, rank, folder / "trained") for name in TRAININGS}
    results["gradient"] = gradient(rank)
    results["distances"] = fit_distances_and_evaluate(rank, folder / "distances")
    results["fitted"] = fit(folder / "fitted", folder / "softmax.pth")
    results["drawn"] = draw(folder / "drawn", 3)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    torch.save({"model": build_model(config(folder, "softmax")).state_dict()}, folder / "softmax.pth")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("training", list(TRAININGS))
def test_ranks_stay_alike_whatever_labels_they_get(ranks, training):
    first, second = (rank[training] for rank in ranks)
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert not value.is_floating_point() or value.isfinite().all(), name
    assert first["error"] == second["error"]
    for step, (one, other) in enumerate(zip(first["losses"][:3], second["losses"][:3], strict=True)):
        assert one.keys() == other.keys() and np.isfinite([*one.values(), *other.values()]).all()
        # No labelled pixel, no loss: on rank 1 in step 1, on both in step 2.
        assert [one["loss_ce"] == 0, other["loss_ce"] == 0] == [step == 2, step in (1, 2)]
    skips, stops = "skipped" in training, "stops" in training
    assert len(first["losses"]) == (4 if stops else STEPS)
    assert first["skipped"] == second["skipped"] == int(skips)
    if stops:
        assert "the features of backbone" in first["error"] and "loss_ce = nan" in first["error"]
        assert "at iteration 3" in first["error"] and "on 1 of 2 ranks, first on rank 1" in first["error"]


def test_gradients_are_averaged(ranks):
    """The output is W x, so the gradient of its sum is the column sum of x, 1 and 2 times this one."""
    expected = 1.5 * torch.arange(12.0).reshape(4, 3).sum(dim=0).expand(2, 3)
    for rank in ranks:
        torch.testing.assert_close(rank["gradient"], expected)


def test_sampled_contrast_and_guide_took_part(ranks):
    for rank in ranks:
        losses = rank["guided mixtures with sampled contrast"]["losses"]
        assert all("loss_guide" in terms for terms in losses)
        assert max(terms.get("loss_sampled_contrast", 0) for terms in losses) > 0


def test_distances_and_evaluation_give_the_numbers_of_one_process(ranks, tmp_path):
    alone = fit_distances_and_evaluate(0, tmp_path)
    assert len(alone["state"]) > 5 and len(alone["numbers"]) > 10
    for rank in ranks:
        found = rank["distances"]
        assert found["state"].keys() == alone["state"].keys()
        for name, value in alone["state"].items():
            torch.testing.assert_close(found["state"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert ranks[0]["distances"]["numbers"] == pytest.approx(alone["numbers"], rel=1e-4, nan_ok=True)
    assert ranks[1]["distances"]["numbers"] == {}


def test_fitted_mixtures_are_those_of_one_process(ranks, folder, tmp_path):
    """Five images in batches of two: in the last one of a pass rank 1 has none."""
    alone = fit(tmp_path, folder / "softmax.pth")
    for rank in ranks:
        for name, value in rank["fitted"].items():
            if value.is_floating_point():
                torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-5, msg=name)
            else:
                assert torch.equal(value, alone[name]), name
    assert alone["classifier.bank.memory.count"].sum() > 500


def test_class_balanced_ranks_have_the_images_of_one_process_and_each_its_own(ranks, tmp_path):
    first, second = (rank["drawn"] for rank in ranks)
    alone = draw(tmp_path, 3)
    for part in ("images", "labels"):
        assert len(first[part]) == len(second[part]) == 6 and len(alone[part]) == 12
        for own, expected in ((first[part], alone[part][0::2]), (second[part], alone[part][1::2])):
            assert all(torch.equal(one, other) for one, other in zip(own, expected, strict=True))
    assert not any(torch.equal(one, other) for one in first["images"] for other in second["images"])


def test_ranks_without_a_seed_agree_on_one(ranks):
    assert ranks[0]["drawn"]["seed"] == ranks[1]["drawn"]["seed"]
    # Both halves of one stream: of seven classes with an image each, no seed gives the same draws twice.
    assert ranks[0]["drawn"]["indices"] != ranks[1]["drawn"]["indices"]


if __name__ == "__main__":
    # Forked after the imports, which take most of the time.
    child = os.fork()
    run_rank(0 if child else 1, Path(sys.argv[1]))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
