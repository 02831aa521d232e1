"""When EM runs, with which momentum, and what a training step does when the loss is not finite."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine.em_hook import EMHook
from gmm_anomaly.engine.optimizer import build_optimizer, build_scheduler
from gmm_anomaly.engine.train_loop import TrainLoop
from gmm_anomaly.gmm import GaussianMixtureBank


def config(*overrides):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(list(overrides))
    return cfg


def run_hook(hook, bank, iterations):
    """Iterations after which the means have moved."""
    moved = []
    generator = torch.Generator().manual_seed(0)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=iterations, storage=storage)
        hook.before_train()
        for iteration in range(iterations):
            hook.trainer.iter = iteration
            features = nn.functional.normalize(torch.randn(30, 4, generator=generator), dim=1)
            labels = torch.arange(30) % 2
            before = bank.means.clone()
            bank.record(
                features, labels, torch.zeros(30, dtype=torch.int64), torch.ones(30, dtype=torch.bool)
            )
            assert torch.equal(bank.means, before)
            hook.after_step()
            if not torch.equal(bank.means, before):
                moved.append(iteration)
    return moved


def test_em_runs_after_the_first_and_every_nth_iteration():
    bank = GaussianMixtureBank(2, 1, 4, memory_size=50)
    assert run_hook(EMHook(bank, interval=5), bank, 12) == [0, 5, 10]
    # Between EM steps the memory fills all the same: 12 batches of 15 a class, 50 slots.
    assert bank.memory.count.tolist() == [50, 50]


def test_momentum_ramps_from_start_to_final():
    bank = GaussianMixtureBank(2, 1, 4, momentum_mean=0.999)
    hook = EMHook(bank, start_momentum=0.5, ramp=0.5)
    assert hook.momentum(0.0) == pytest.approx(0.5)
    # Half-way in the ramp: geometric mean of 0.5 and 0.001.
    assert hook.momentum(0.25) == pytest.approx(1 - (0.5 * 0.001) ** 0.5)
    assert hook.momentum(0.5) == hook.momentum(1.0) == 0.999
    assert EMHook(bank).momentum(0.0) == 0.999


def test_hook_follows_the_config():
    bank = GaussianMixtureBank(2, 1, 4)
    hook = EMHook.from_config(config("MODEL.GMM.UPDATE_INTERVAL", 7), bank)
    assert (hook.interval, hook.start_momentum) == (7, 0.5)
    assert EMHook.from_config(config("MODEL.GMM.WARM_START", False), bank).start_momentum is None
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.UPDATE_INTERVAL"):
        EMHook(bank, interval=0)


class Quadratic(nn.Module):
    """Loss (w - x)^2; x is whatever the loader gives."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, data):
        return {"loss_fit": (self.weight - data).square().sum(), "loss_zero": (self.weight * 0).sum()}


def test_loss_that_is_not_finite_stops_before_the_step():
    model = Quadratic()
    loop = TrainLoop(
        model, [torch.tensor([1.0]), torch.tensor([float("nan")])],
        torch.optim.SGD(model.parameters(), 0.25), amp=False,
    )  # fmt: skip
    with (
        EventStorage(),
        pytest.raises(FloatingPointError, match=r"iteration 1: loss_fit = nan, loss_zero = 0"),
    ):
        loop.train(0, 2)
    # One good step of size 0.25 * 2: w = 0.5; the bad one left it alone.
    assert model.weight.item() == pytest.approx(0.5)


def test_optimizer_groups_follow_the_keys():
    model = nn.ModuleDict(
        {"backbone": nn.Linear(2, 2), "head": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))}
    )
    cfg = config(
        "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", 0.001, "SOLVER.HEAD_LR_FACTOR", 10.0,
        "SOLVER.WEIGHT_DECAY", 0.01, "SOLVER.WEIGHT_DECAY_NORM", 0.0,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[parameter] = (group["lr"], group["weight_decay"])
    assert found[model["backbone"].weight] == (0.001, 0.01)
    assert found[model["head"][0].weight] == (0.01, 0.01)
    assert found[model["head"][1].weight] == (0.01, 0.0)
    with pytest.raises(ValueError, match=r'SOLVER\.OPTIMIZER: expected "SGD" or "ADAMW", found \'LION\''):
        build_optimizer(config("SOLVER.OPTIMIZER", "LION"), model)


def test_poly_schedule_with_warm_up_is_its_formula():
    model = nn.Linear(1, 1)
    cfg = config(
        "SOLVER.BASE_LR", 1.0, "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 10, "SOLVER.WARMUP_FACTOR", 0.1,
        "SOLVER.POLY_LR_POWER", 0.9,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    end_of_warm_up = (1 - 10 / 100) ** 0.9
    assert rates[0] == pytest.approx(0.1 * end_of_warm_up, rel=1e-6) or rates[0] == pytest.approx(
        0.1, rel=1e-6
    )
    assert rates[10:] == pytest.approx([(1 - i / 100) ** 0.9 for i in range(10, 100)], rel=1e-6)
