"""Steps with NaN, infinity or overflow in them: who notices, and what is undone. Two ranks: test_ranks.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gmm_anomaly.engine import train_loop
from gmm_anomaly.engine.hooks import EMHook
from gmm_anomaly.engine.train_loop import FeatureWatch, PassNumbers, TrainLoop
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.modeling.classifiers import GMMClassifier
from gmm_anomaly.modeling.decoders.base import Decoded

CLASSES, DIM = 3, 8
NAN = float("nan")


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
    options = {"amp": None, **options}
    loop = TrainLoop(model, batches, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **options)
    if hooks:
        loop.register_hooks([EMHook(model.classifier.bank, interval=1)])
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


@pytest.mark.parametrize("poison", [NAN, float("inf")])
def test_stop_names_iteration_terms_and_features_and_leaves_the_last_good_step(poison):
    good = Segmentor()
    run(loop_over(good, [batch(1)]), 1)
    model = Segmentor()
    with pytest.raises(FloatingPointError) as caught:
        run(loop_over(model, [batch(1), batch(2, poison=poison)]), 2)
    assert str(caught.value).startswith(
        "not finite at iteration 1: the loss, loss_ce, loss_contrast, the features of backbone, the features "
        "of decoder, the features of embedding (loss_ce = nan, loss_contrast = nan). Training stopped before "
        "this step; the last checkpoint is intact."
    )
    assert "SOLVER.NON_FINITE skip" in str(caught.value)
    norms = ("running_mean", "running_var", "num_batches_tracked")
    kept, expected = (
        {name: tensor for name, tensor in state(one).items() if not name.endswith(norms)}
        for one in (model, good)
    )
    assert_equal_states(kept, expected)


def test_skipped_step_is_as_if_it_had_not_been():
    expected = Segmentor()
    run(loop_over(expected, [batch(1), batch(3)]), 2)
    model = Segmentor()
    loop = loop_over(model, [batch(1), batch(2, poison=NAN), batch(3)], non_finite="skip")
    latest = run(loop, 3)
    for name, tensor in state(expected).items():
        # The EM step without news normalises the means once more: a rounding.
        torch.testing.assert_close(state(model)[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert model.backbone[1].num_batches_tracked == 2 and model.classifier.bank.is_fitted
    assert latest["solver/skipped_steps"] == (1, 2)
    # The count goes on after a resume.
    again = loop_over(Segmentor(), [batch(1)])
    again.load_state_dict(loop.state_dict())
    assert again.skipped == 1


def test_limit_counts_steps_in_a_row(monkeypatch):
    monkeypatch.setattr(train_loop, "NON_FINITE_LIMIT", 2)
    bad = batch(2, poison=NAN)
    run(loop_over(Segmentor(), [bad, batch(1), bad, batch(3)], non_finite="skip"), 4)
    with pytest.raises(FloatingPointError, match=r"at iteration 2: .*2 steps in a row were left out"):
        run(loop_over(Segmentor(), [batch(1), bad, bad, batch(3)], non_finite="skip"), 4)


def test_features_alone_are_a_fault():
    model = Segmentor()
    watch = FeatureWatch(model)
    with torch.no_grad():
        model.decoder.convolution.bias[2] = float("inf")
        model.decoder(model.backbone(batch(1)[0]))
    losses = {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}

    def found() -> str | None:
        return PassNumbers(torch.tensor(3.0), losses, watch, torch.tensor(1.0)).fault()

    assert found() is None, "passes without gradients are not watched"
    model.decoder(model.backbone(batch(1)[0]))
    assert found() == "the features of decoder (loss_a = 1, loss_b = 2)"
    assert found() is None, "a fault is told once"


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
        FloatingPointError, match=r"iteration 0: the gradients of 1 of 2 parameters, first steep \(loss_root"
    ):
        run(loop_over(model, [0], hooks=False), 1)
    assert model.steep.tolist() == [0, 0] and model.fine.tolist() == [1, 1]
    latest = run(loop_over(model, [0], hooks=False, non_finite="skip"), 1)
    assert latest["solver/skipped_steps"] == (1, 0) and model.steep.tolist() == [0, 0]


def test_fused_optimiser_leaves_a_step_out_and_the_next_one_tells():
    """As on a GPU, where gradients are not waited for."""
    bad, good = SquareRoot(), SquareRoot()
    good.steep.data.fill_(1.0)

    class InTurns(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = bad, good

        def forward(self, is_bad):
            return self.bad(0) if is_bad else self.good(0)

    def loop(data, **options):
        model = InTurns()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
        return TrainLoop(model, data, optimizer, amp=None, **options)

    message = r"iteration 0: the gradients of 1 of 2 parameters, first bad.steep \(loss_root = 0\)"
    with pytest.raises(FloatingPointError, match=message):
        run(loop([True, False]), 2)
    with pytest.raises(FloatingPointError, match=message):
        last = loop([True])
        run(last, 1)
        last.finish()
    assert bad.steep.tolist() == [0, 0] and good.steep.tolist() == [1, 1]
    skipping = loop([True, True, False, False], non_finite="skip")
    assert run(skipping, 4)["solver/skipped_steps"] == (2, 3)
    assert bad.steep.tolist() == [0, 0] and good.steep.tolist() < [1, 1]


def scaled(loop, scale):
    """The loop as it is on a GPU: float16 with loss scaling."""
    loop.autocast = torch.autocast("cpu", dtype=torch.float16)
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return loop


def test_step_that_loss_scaling_leaves_out_changes_no_weights():
    model = Segmentor()
    before = state(model)
    loop = scaled(loop_over(model, [batch(1), batch(2)]), 2.0**120)
    run(loop, 1)
    name = "decoder.convolution.weight"
    assert torch.equal(state(model)[name], before[name]) and loop.scaler.get_scale() == 2.0**119
    # With a scale that fits, a step is taken.
    run(scaled(loop_over(model, [batch(1)]), 2.0**4), 1)
    assert not torch.equal(state(model)[name], before[name])


def test_scale_that_cannot_fall_far_enough_is_a_fault():
    with pytest.raises(FloatingPointError, match="iteration 2: the gradients of 1 of 2 parameters"):
        run(scaled(loop_over(SquareRoot(), [0] * 5, hooks=False), 2.0), 5)


@pytest.mark.parametrize(
    "dtype, huge, assignment", [(torch.float16, 1e6, "sinkhorn"), (torch.bfloat16, 3e38, "em")]
)
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
        model.bank.em_attached = True
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
