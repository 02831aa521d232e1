"""What only a GPU can show: nothing waits for it, and it computes what the CPU computes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, own_class_log_prob, sinkhorn_assign_all
from gmm_anomaly.gmm.gpu import PLAIN_CALLS, Replayed
from gmm_anomaly.metrics import PixelMetrics
from tools.benchmarks import models

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CONFIG = Path(__file__).parents[1] / "configs" / "synthetic" / "effnetlite0_deeplabv3plus_gmm.yaml"
TINY = ["MODEL.FEATURE_DISTANCE.FEATURES", [], "MODEL.GMM.WARM_START_FEATURES", 20]


def given(*overrides, half=False):
    return Namespace(
        config_file=str(CONFIG),
        size=(128, 128),
        batch=2,
        half=half,
        device="cuda",
        overrides=[*TINY, *overrides],
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_training_never_waits(dtype):
    """But for the numbers that are logged every twentieth iteration."""
    args = given(*(("SOLVER.AMP.DTYPE", dtype) if dtype != "float32" else ()), half=dtype != "float32")
    iteration = models.Iteration(args, models.twin_config(args, "gmm"))
    bank = iteration.loop.model.bank
    while iteration.loop.iter < 2 * PLAIN_CALLS + 1:  # all classes have started, all graphs are there
        iteration()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(15):
            iteration()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bank.is_fitted and bank.means.isfinite().all()


def test_mixtures_are_those_of_the_cpu():
    """Over enough steps for graphs to be made of them."""
    banks = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        bank = banks[device] = GaussianMixtureBank(4, 3, 16, 200, 10, 0.9, fill_slots=50).to(device)
        bank.em_attached = True
        generator = torch.Generator().manual_seed(1)
        for _ in range(3 * PLAIN_CALLS):
            labels = torch.randint(0, 5, (500,), generator=generator)
            x = F.normalize(F.one_hot(labels, 16) + 0.4 * torch.randn(500, 16, generator=generator), dim=1)
            x, labels = x.to(device), labels.to(device)
            own = own_class_log_prob(bank.train().log_prob(x), labels.clamp(max=3))
            assignment, _ = sinkhorn_assign_all(own, labels, 4)
            bank.record(x, labels, assignment, labels < 4)
            bank.update()
    here, there = banks["cpu"].state_dict(), banks["cuda"].state_dict()
    assert here["fitted"].all() and here["memory.count"].sum() > 1000
    for name, tensor in here.items():
        torch.testing.assert_close(there[name].cpu(), tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_replayed_function_follows_its_arguments_and_its_state():
    state = torch.zeros(3, device="cuda")

    def add(x, factor):
        state.add_(factor * x)
        return (state * 2,)

    replayed, expected = Replayed(add, lambda: (state,)), torch.zeros(3)
    for number in range(3 * PLAIN_CALLS):
        x = torch.full((3,), float(number))
        (found,) = replayed(x.cuda(), 2)
        expected += 2 * x
        assert torch.equal(found.cpu(), 2 * expected)


def test_densities_keep_their_digits_whatever_the_products_may_do(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    for classes, components, dim, reduction in (
        (19, 5, 64, "max"),
        (7, 3, 48, "logsumexp"),
        (150, 5, 64, "max"),
    ):
        bank = GaussianMixtureBank(classes, components, dim, 10, 10, reduction=reduction).eval()
        bank.fitted.fill_(True)
        bank.scales.uniform_(0.1, 0.15)
        x = F.normalize(torch.randn(5000, dim), dim=1)
        exact = bank.class_log_density(x.double())
        with torch.autocast("cuda", dtype=torch.float16):
            found = bank.cuda().class_log_density(x.cuda())
        torch.testing.assert_close(found.cpu().double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "protocol, precision", [("fishyscapes", None), ("smiyc", "float16"), ("per_image", None)]
)
def test_metrics_are_those_of_the_cpu(protocol, precision):
    rng = np.random.default_rng(0)
    here, there = (PixelMetrics(protocol, precision, max_distinct=100_000) for _ in range(2))
    for _ in range(3):
        score = rng.normal(0, 3, (300, 400)).astype(np.float32)
        label = rng.choice([0, 1, 255], score.shape, p=[0.8, 0.1, 0.1]).astype(np.uint8)
        here.update(score, label)
        there.update(torch.from_numpy(score).cuda(), label)
    np.testing.assert_equal(there.compute(), here.compute())
    np.testing.assert_equal(there.curve(), here.curve())
