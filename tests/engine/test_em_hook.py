"""When EM runs, with which momentum, and that ranks are compared when that is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from gmm_anomaly.engine.config import read_config
from gmm_anomaly.engine.em_hook import EMHook
from gmm_anomaly.gmm import GaussianMixtureBank


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
            before = bank.means.clone()
            index, everywhere = torch.zeros(30, dtype=torch.int64), torch.ones(30, dtype=torch.bool)
            bank.record(features, torch.arange(30) % 2, index, everywhere)
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
    assert not bank.em_attached
    hook = EMHook.from_config(read_config("", ["MODEL.GMM.UPDATE_INTERVAL", 7]), bank)
    assert (hook.interval, hook.start_momentum, bank.em_attached) == (7, 0.5, True)
    plain = EMHook.from_config(read_config("", ["MODEL.GMM.WARM_START", False]), bank)
    assert plain.start_momentum is None
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.UPDATE_INTERVAL"):
        EMHook(bank, interval=0)
