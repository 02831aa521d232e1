"""Steps with NaN, infinity or overflow in them: who notices, what is undone, and that ranks decide alike.

Run as a script, this file is one rank of a training over two gloo processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gmm_anomaly.engine.em_hook import EMHook
from gmm_anomaly.engine.non_finite import FeatureWatch, find_fault
from gmm_anomaly.engine.train_loop import TrainLoop
from gmm_anomaly.evaluation.finite_scores import check_rule, finite_scores
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.modeling.classifiers import GMMClassifier
from gmm_anomaly.modeling.decoders.base import Decoded

CLASSES, DIM = 3, 8


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)

    def forward(self, pyramid, labels=None):
        return Decoded(self.convolution(pyramid["res"]), {})


class Backbone(nn.Sequential):
    def forward(self, images):
        return {"res": super().forward(images)}


class Segmentor(nn.Module):
    """The segmentor's parts at the smallest size; a batch is (images, labels)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        bank = GaussianMixtureBank(CLASSES, 2, DIM, memory_size=40, samples_per_update=10, fill_slots=40)
        self.backbone = Backbone(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.decoder = Decoder()
        self.classifier = GMMClassifier(4, bank, dropout=0, projection="linear")

    def forward(self, batch):
        images, labels = batch
        return self.classifier.losses(self.decoder(self.backbone(images)).features, labels)


def batch(seed: int, *, poison: float | None = None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    if poison is not None:
        images[0, 1, 2, 3] = poison
    return images, torch.randint(0, CLASSES, (2, 8, 8), generator=generator)


def loop_over(model, batches, *, hooks=True, **options):
    options = {"amp": False, **options}
    loop = TrainLoop(model, batches, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **options)
    if hooks:
        loop.register_hooks([EMHook(getattr(model, "module", model).classifier.bank, interval=1)])
    return loop


def run(loop, iterations):
    loop.train(0, iterations)
    return loop.storage.latest()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_stop_names_iteration_terms_and_features_and_leaves_the_last_good_step(poison):
    good = Segmentor()
    run(loop_over(good, [batch(1)]), 1)
    model = Segmentor()
    loop = loop_over(model, [batch(1), batch(2, poison=poison)])
    with pytest.raises(FloatingPointError) as caught:
        run(loop, 2)
    message = str(caught.value)
    assert message.startswith("the loss is not finite at iteration 1: loss_ce = nan, loss_contrast = nan (")
    assert "not finite: loss_ce, loss_contrast; already not finite: the features of backbone, dec" in message
    assert "the last checkpoint is intact" in message and "SOLVER.NON_FINITE skip" in message
    norms = ("running_mean", "running_var", "num_batches_tracked")
    kept = {name: tensor for name, tensor in state(model).items() if not name.endswith(norms)}
    assert_equal_states(
        kept, {name: tensor for name, tensor in state(good).items() if not name.endswith(norms)}
    )


def test_skipped_step_is_as_if_it_had_not_been():
    expected = Segmentor()
    run(loop_over(expected, [batch(1), batch(3)]), 2)
    model = Segmentor()
    loop = loop_over(
        model, [batch(1), batch(2, poison=float("nan")), batch(3)], non_finite="skip", non_finite_limit=2
    )
    latest = run(loop, 3)
    for name, tensor in state(expected).items():
        # The EM step without news normalises the means once more: a rounding.
        torch.testing.assert_close(state(model)[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert model.backbone[1].num_batches_tracked == 2 and model.classifier.bank.is_fitted
    assert latest["solver/skipped_steps"] == (1, 2)
    # The count goes on after a resume.
    again = loop_over(Segmentor(), [batch(1)])
    again.load_state_dict(loop.state_dict())
    assert (again.skipped, again.overflowed) == (1, 0)


def test_limit_counts_steps_in_a_row():
    bad = batch(2, poison=float("nan"))
    rules = {"non_finite": "skip", "non_finite_limit": 2}
    run(loop_over(Segmentor(), [bad, batch(1), bad, batch(3)], **rules), 4)
    with pytest.raises(FloatingPointError, match=r"at iteration 2: .*2 steps in a row .*NON_FINITE_LIMIT"):
        run(loop_over(Segmentor(), [batch(1), bad, bad, batch(3)], **rules), 4)


def test_features_alone_are_a_fault():
    model = Segmentor()
    watch = FeatureWatch(model)
    assert watch.parts == ["backbone", "decoder", "embedding"]
    with torch.no_grad():
        model.decoder.convolution.bias[2] = float("inf")
        model.decoder(model.backbone(batch(1)[0]))
    losses = {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}
    assert find_fault(torch.tensor(3.0), losses, watch) is None, "passes without gradients are not watched"
    model.decoder(model.backbone(batch(1)[0]))
    fault = find_fault(torch.tensor(3.0), losses, watch)
    assert fault.describe(7) == (
        "the features are not finite at iteration 7: loss_a = 1, loss_b = 2 (each term is finite; already "
        "not finite: the features of decoder; finite: the features of backbone, embedding)"
    )
    assert find_fault(torch.tensor(3.0), losses, watch) is None, "a fault is told once"


class SquareRoot(nn.Module):
    """A loss of 0 whose gradient is infinite."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Parameter(torch.ones(2))
        self.steep = nn.Parameter(torch.zeros(2))

    def forward(self, data):
        return {"loss_root": self.steep.abs().sqrt().sum() + 0 * self.fine.sum()}


def test_gradients_are_a_fault_before_they_reach_the_weights():
    model = SquareRoot()
    with pytest.raises(
        FloatingPointError, match=r"the gradients are not finite at iteration 0: loss_root = "
    ):
        run(loop_over(model, [0], hooks=False), 1)
    assert model.steep.tolist() == [0, 0] and model.fine.tolist() == [1, 1]
    latest = run(loop_over(model, [0], hooks=False, non_finite="skip"), 1)
    assert latest["solver/skipped_steps"] == (1, 0) and model.steep.tolist() == [0, 0]


def scaled(loop, scale):
    """The loop as it is on a GPU: float16 with loss scaling."""
    loop.autocast = torch.autocast("cpu", dtype=torch.float16)
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return loop


def test_step_that_loss_scaling_leaves_out_does_not_update_the_mixture():
    model = Segmentor()
    before = state(model)
    latest = run(scaled(loop_over(model, [batch(1)]), 2.0**120), 1)
    after = state(model)
    assert latest["solver/overflowed_steps"] == (1, 0)
    for name, tensor in before.items():
        # Only norms have seen the batch: its forward pass was finite. (An EM step normalises means again.)
        changed = "running_" in name or name.endswith("tracked")
        assert torch.allclose(after[name], tensor, atol=1e-6) != changed, name
    assert not model.classifier.bank.is_fitted and not model.classifier.bank.memory.count.any()
    # With a scale that fits, the same step is taken.
    latest = run(scaled(loop_over(model, [batch(1)]), 2.0**4), 1)
    assert latest["solver/overflowed_steps"] == (0, 0) and model.classifier.bank.is_fitted
    assert not torch.equal(state(model)["decoder.convolution.weight"], before["decoder.convolution.weight"])


def test_scale_that_cannot_fall_far_enough_is_a_fault():
    with pytest.raises(FloatingPointError, match="the gradients are not finite at iteration 2"):
        run(scaled(loop_over(SquareRoot(), [0] * 5, hooks=False), 2.0), 5)


@pytest.mark.parametrize("dtype, huge", [(torch.float16, 1e6), (torch.bfloat16, 3e38)])
@pytest.mark.parametrize("assignment", ["sinkhorn", "em"])
def test_overflow_in_half_precision_does_not_reach_the_mixture(dtype, huge, assignment):
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 4, 8, 8, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 8, 8), generator=generator)
    overflowing, hidden = features.clone(), labels.clone()
    overflowing[0, :, 1, 2:5], overflowing[1, :, 7, 7] = huge, -huge
    hidden[0, 1, 2:5] = hidden[1, 7, 7] = 255

    def updated(features, labels):
        model = Segmentor().classifier
        model.assignment = assignment
        with torch.no_grad():
            # Large weights, so that sums of the largest bfloat16 numbers overflow too.
            model.project[1].weight.mul_(20)
        with torch.autocast("cpu", dtype=dtype):
            losses = model.losses(features, labels)
            overflowed = int((~model.embed(features).isfinite().all(1)).sum())
        for _ in range(2):
            model.bank.update()
        return state(model.bank), losses, overflowed

    found, losses, overflowed = updated(overflowing, labels)
    expected, _, none = updated(features, hidden)
    assert (overflowed, none) == (4, 0) and losses["loss_ce"].isnan()
    assert found["memory.count"].sum() > 0
    assert_equal_states(found, expected)


def test_rules_and_limits_are_checked():
    with pytest.raises(ValueError, match=r"SOLVER\.NON_FINITE: expected one of stop, skip, found 'ignore'"):
        loop_over(Segmentor(), [], non_finite="ignore")
    with pytest.raises(ValueError, match=r"SOLVER\.NON_FINITE_LIMIT: expected at least 1, found 0"):
        loop_over(Segmentor(), [], non_finite_limit=0)
    with pytest.raises(ValueError, match=r"TEST\.NON_FINITE_SCORES: .* stop, anomalous, found 'zero'"):
        check_rule("zero")


def test_scores_that_are_not_finite_stop_or_count_as_anomalous():
    scores = torch.tensor([[1.0, float("nan")], [float("-inf"), 3.0]])
    with pytest.raises(FloatingPointError, match=r"image 'a_01': the score 'msp' is NaN .* at 2 of 4 pixels"):
        finite_scores(scores, "stop", image="image 'a_01'", name="msp")
    found = finite_scores(scores, "anomalous", image="image 'a_01'", name="msp")
    assert found.tolist() == [[1, 3], [3, 3]]
    whole = torch.ones(2, 2)
    assert finite_scores(whole, "stop", image="", name="") is whole
    with pytest.raises(FloatingPointError, match="4 of 4 pixels; check the weights"):
        finite_scores(torch.full((2, 2), torch.nan), "anomalous", image="b", name="msp")


# Two processes: the second step of rank 1 alone is bad.


def work(rank: int, folder: Path, rule: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    model = DistributedDataParallel(Segmentor(), broadcast_buffers=False)
    poison = float("nan") if rank == 1 else None
    batches = [batch(10 + rank), batch(20 + rank, poison=poison), batch(30 + rank)]
    loop = loop_over(model, batches, non_finite=rule)
    error = ""
    try:
        run(loop, 3)
    except FloatingPointError as caught:
        error = str(caught)
    torch.save(
        {"state": state(model.module), "error": error, "skipped": loop.skipped}, folder / f"{rule}{rank}.pt"
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_two_ranks_decide_alike(rule, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(tmp_path), rule],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-2000:]
    first, second = (torch.load(tmp_path / f"{rule}{rank}.pt") for rank in range(2))
    if rule == "stop":
        assert first["error"] == second["error"]
        assert "at iteration 1: loss_ce = nan" in first["error"]
        assert "on 1 of 2 ranks, first on rank 1" in first["error"]
    else:
        assert first["error"] == second["error"] == ""
        assert first["skipped"] == second["skipped"] == 1
    for name, tensor in first["state"].items():
        # Norms see their own rank's pixels.
        if ".bank.memory." not in name and "running_" not in name:
            assert torch.equal(tensor, second["state"][name]), name
        assert tensor.isfinite().all() or rule == "stop", name


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
