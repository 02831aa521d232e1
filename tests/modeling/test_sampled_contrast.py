"""The contrast with drawn vectors against loops in float64, and what it must never do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.modeling.losses import SampledContrast, choose_anchors, sampled_contrast

CLASSES, DRAWS, DIM = 4, 6, 5


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def problem(anchors=20, seed=0):
    labels = torch.randint(0, CLASSES, (anchors,), generator=torch.Generator().manual_seed(seed))
    labels[::7] = 255
    return unit(anchors, DIM, seed=seed), labels, unit(CLASSES, DRAWS, DIM, seed=seed + 1)


def by_loops(anchors, labels, samples, usable, temperature):
    """InfoNCE, one anchor after the other."""
    losses = []
    for x, y in zip(anchors.double().numpy(), labels.tolist(), strict=True):
        if y < CLASSES and usable[y]:
            means = [np.exp(draws @ x / temperature).mean() for draws in samples.double().numpy()]
            losses.append(-math.log(means[y] / sum(means[c] for c in range(CLASSES) if usable[c])))
    return np.mean(losses)


@pytest.mark.parametrize("temperature, unusable", [(0.1, []), (1.0, [2]), (0.1, [0, 3])])
def test_loss_is_the_loop(temperature, unusable):
    anchors, labels, samples = problem()
    usable = torch.ones(CLASSES, dtype=torch.bool)
    usable[unusable] = False
    found = sampled_contrast(anchors, labels, samples, usable, temperature)
    assert found.item() == pytest.approx(by_loops(anchors, labels, samples, usable, temperature), rel=1e-5)


def test_without_usable_classes_the_loss_is_zero_and_has_a_gradient():
    anchors, labels, samples = problem()
    anchors.requires_grad_()
    for usable, target in (
        (torch.zeros(CLASSES), labels),
        (torch.ones(CLASSES), torch.full_like(labels, 255)),
    ):
        loss = sampled_contrast(anchors, target, samples, usable.bool())
        (gradient,) = torch.autograd.grad(loss, anchors)
        assert loss.item() == 0 and torch.equal(gradient, torch.zeros_like(anchors))


def test_anchors_are_distinct_labelled_pixels_half_of_them_wrong():
    generator = torch.Generator().manual_seed(0)
    # Class 0: plenty of both kinds; 1: three wrong ones; 2: four pixels in all; 3: absent.
    labels = torch.tensor([0] * 300 + [1] * 200 + [2] * 4 + [255] * 90)
    correct = torch.ones(len(labels), dtype=torch.bool)
    for wrong in (slice(150), slice(300, 303), slice(-90, None)):
        correct[wrong] = False
    shuffle = torch.randperm(len(labels), generator=generator)
    labels, correct = labels[shuffle], correct[shuffle]
    index, valid = choose_anchors(labels, correct, CLASSES, 20, generator)
    assert valid.sum(1).tolist() == [20, 20, 4, 0]
    wrong = []
    for label in range(3):
        chosen = index[label][valid[label]]
        assert len(chosen.unique()) == len(chosen) and (labels[chosen] == label).all()
        wrong.append(int((~correct[chosen]).sum()))
    # Ten by preference; of the others of class 0 about half are wrong, those of class 1 are used up.
    assert 10 <= wrong[0] < 20 and wrong[1:] == [3, 0]


def fitted_bank(fill):
    bank = GaussianMixtureBank(CLASSES, 2, DIM, memory_size=10, samples_per_update=10)
    component = torch.arange(8).repeat_interleave(fill)
    features = unit(len(component), DIM, seed=3)
    bank.record(features, component // 2, component % 2, torch.ones(len(features), dtype=torch.bool))
    bank.update()
    return bank


def loss_at(iteration, contrast, *arguments):
    torch.manual_seed(0)
    with EventStorage(start_iter=iteration):
        return contrast.losses(*arguments).get("loss_sampled_contrast")


def test_gradient_reaches_the_features_and_never_the_mixture():
    bank = fitted_bank(fill=6)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    embedding = unit(50, DIM).requires_grad_()
    labels = torch.arange(50) % (CLASSES + 1)
    labels[labels == CLASSES] = 255
    given = (SampledContrast(weight=0.5, start=10, ramp=9), bank, embedding, labels, labels == 1)
    assert loss_at(9, *given) is None and loss_at(16, *given) is None
    loss = loss_at(10, *given)
    loss.backward()
    moved = embedding.grad.abs().sum(1) > 0
    assert moved[labels < CLASSES].all() and not moved[labels == 255].any()
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name]), name
    # A tenth of the weight at the start, six tenths five iterations later.
    torch.testing.assert_close(loss_at(15, *given), 6 * loss)


def test_classes_take_part_once_their_memories_are_filled():
    contrast = SampledContrast(min_fill=0.5)
    assert contrast.usable(fitted_bank(fill=4)).tolist() == [False] * CLASSES
    bank = fitted_bank(fill=5)
    bank.fitted[1, 1] = False
    assert contrast.usable(bank).tolist() == [True, False, True, True]


def test_weight_ramps_up_and_the_loss_is_taken_every_five_iterations():
    contrast = SampledContrast(start=10, ramp=19)
    found = [contrast.factor(i) for i in (0, 9, 10, 11, 15, 20, 25, 30)]
    assert found == [0, 0, 0.05, 0, 0.3, 0.55, 0.8, 1]
    assert SampledContrast(start=0, ramp=0).factor(0) == 1
