"""The contrast with drawn vectors against loops in float64, and what it must never do."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.engine.sampled_contrast_hook import SampledContrastHook
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.modeling.sampled_contrast import SampledContrast, choose_anchors, sampled_contrast

CLASSES, DRAWS, DIM = 4, 6, 5


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def problem(anchors=20, seed=0):
    labels = torch.randint(0, CLASSES, (anchors,), generator=torch.Generator().manual_seed(seed))
    labels[::7] = 255
    return unit(anchors, DIM, seed=seed), labels, unit(CLASSES, DRAWS, DIM, seed=seed + 1)


def by_loops(anchors, labels, samples, usable, temperature):
    """InfoNCE, one anchor and one sample after the other."""
    losses = []
    for x, y in zip(anchors.double().numpy(), labels.tolist(), strict=True):
        if y >= CLASSES or not usable[y]:
            continue
        positive = np.mean([math.exp(x @ z / temperature) for z in samples[y].double().numpy()])
        negative = 0.0
        for other in range(CLASSES):
            if other != y and usable[other]:
                negative += (
                    sum(math.exp(x @ z / temperature) for z in samples[other].double().numpy()) / DRAWS
                )
        losses.append(-math.log(positive / (positive + negative)))
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("unusable", [[], [2], [0, 3]])
def test_loss_is_the_loop(temperature, unusable):
    anchors, labels, samples = problem()
    usable = torch.ones(CLASSES, dtype=torch.bool)
    usable[unusable] = False
    found = sampled_contrast(anchors, labels, samples, usable, temperature)
    assert found.item() == pytest.approx(by_loops(anchors, labels, samples, usable, temperature), rel=1e-5)


def test_loss_worked_by_hand():
    # One anchor at the first axis; its class's samples are at the first and the second axis, the other
    # class's both opposite: e(0) = (e + 1) / 2, e(1) = 1 / e.
    samples = torch.tensor([[[1.0, 0], [0, 1]], [[-1, 0], [-1, 0]]])
    found = sampled_contrast(
        torch.tensor([[1.0, 0]]), torch.tensor([0]), samples, torch.tensor([True, True]), temperature=1.0
    )
    own, other = (math.e + 1) / 2, 1 / math.e
    assert found.item() == pytest.approx(-math.log(own / (own + other)), rel=1e-6)


def test_noise_free_draws_of_one_component_are_a_cosine_softmax():
    bank = GaussianMixtureBank(CLASSES, 1, DIM)
    bank.fitted.fill_(True)
    samples = bank.sample(list(range(CLASSES)), DRAWS, noise_scale=0.0)
    anchors, labels, _ = problem()
    found = sampled_contrast(anchors, labels, samples, torch.ones(CLASSES, dtype=torch.bool), 0.1)
    expected = F.cross_entropy(anchors @ bank.unit_means[:, 0].t() / 0.1, labels, ignore_index=255)
    torch.testing.assert_close(found, expected)


def test_order_of_samples_does_not_matter_and_moving_to_the_own_mean_helps():
    anchors, labels, samples = problem()
    usable = torch.ones(CLASSES, dtype=torch.bool)
    before = sampled_contrast(anchors, labels, samples, usable)
    torch.testing.assert_close(sampled_contrast(anchors, labels, samples.flip(1), usable), before)
    centre = F.normalize(samples.mean(1), dim=1)[torch.where(labels < CLASSES, labels, 0)]
    moved = F.normalize(anchors + 0.3 * centre, dim=1)
    assert sampled_contrast(moved, labels, samples, usable) < before


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
    labels = torch.cat(
        [torch.zeros(300), torch.ones(200), torch.full((4,), 2), torch.full((90,), 255)]
    ).long()
    correct = torch.ones(len(labels), dtype=torch.bool)
    correct[:150] = False
    correct[300:303] = False
    correct[-90:] = False
    shuffle = torch.randperm(len(labels), generator=generator)
    labels, correct = labels[shuffle], correct[shuffle]
    index, valid = choose_anchors(labels, correct, CLASSES, 20, generator)
    assert index.shape == valid.shape == (CLASSES, 20)
    assert valid.sum(1).tolist() == [20, 20, 4, 0]
    wrong = []
    for label in range(3):
        chosen = index[label][valid[label]]
        assert len(chosen.unique()) == len(chosen) and (labels[chosen] == label).all()
        wrong.append(int((~correct[chosen]).sum()))
    # Ten by preference; of the others of class 0 about half are wrong, those of class 1 are used up.
    assert 10 <= wrong[0] < 20 and wrong[1] == 3 and wrong[2] == 0


@pytest.mark.parametrize("hard_share, preferred", [(0.0, 0), (0.25, 5), (1.0, 20)])
def test_share_of_misclassified_anchors(hard_share, preferred):
    # One class of 2000 pixels, 40 of them misclassified: at random 0.4 of 20 anchors would be.
    labels, correct = torch.zeros(2000, dtype=torch.long), torch.arange(2000) >= 40
    generator = torch.Generator().manual_seed(0)
    index, _ = choose_anchors(labels, correct, 1, 20, generator, hard_share=hard_share)
    wrong = int((~correct[index[0]]).sum())
    assert preferred <= wrong <= preferred + 4


def test_anchors_are_drawn_at_random_without_preference_for_a_place():
    labels, correct = torch.zeros(100, dtype=torch.long), torch.ones(100, dtype=torch.bool)
    counts = torch.zeros(100)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        index, _ = choose_anchors(labels, correct, 1, 10, generator)
        counts[index[0]] += 1
    # 40 expected for each, standard deviation 6.
    assert counts.sum() == 4000 and 15 < counts.min() and counts.max() < 70


def fitted_bank(fill):
    bank = GaussianMixtureBank(CLASSES, 2, DIM, memory_size=10, samples_per_update=10)
    features = unit(8 * fill, DIM, seed=3)
    component = torch.arange(8).repeat_interleave(fill)
    bank.record(features, component // 2, component % 2, torch.ones(len(features), dtype=torch.bool))
    bank.update()
    return bank


def test_gradient_reaches_the_features_and_never_the_mixture():
    bank = fitted_bank(fill=6)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    embedding = unit(50, DIM).requires_grad_()
    labels = torch.arange(50) % (CLASSES + 1)
    labels[labels == CLASSES] = 255
    contrast = SampledContrast(weight=0.5)
    contrast.factor = 0.5
    torch.manual_seed(0)
    loss = contrast.loss(bank, embedding, labels, labels == 1)
    loss.backward()
    moved = embedding.grad.abs().sum(1) > 0
    assert moved[labels < CLASSES].all() and not moved[labels == 255].any()
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name]), name
    contrast.factor = 1.0
    torch.manual_seed(0)
    torch.testing.assert_close(contrast.loss(bank, embedding, labels, labels == 1), 2 * loss)


def test_classes_take_part_once_their_memories_are_filled():
    contrast = SampledContrast(min_fill=0.5)
    assert contrast.usable(fitted_bank(fill=5)).tolist() == [True] * CLASSES
    assert contrast.usable(fitted_bank(fill=4)).tolist() == [False] * CLASSES
    bank = fitted_bank(fill=6)
    bank.fitted[1, 1] = False
    assert contrast.usable(bank).tolist() == [True, False, True, True]


def test_weight_ramps_up_and_the_loss_is_taken_every_few_iterations():
    contrast = SampledContrast()
    hook = SampledContrastHook(contrast, start=10, ramp=19, interval=5)
    assert [hook.factor(i) for i in (0, 9, 10, 11, 15, 20, 25, 30)] == [0, 0, 0.05, 0, 0.3, 0.55, 0.8, 1]
    hook.trainer = SimpleNamespace(iter=15)
    hook.before_step()
    assert contrast.factor == 0.3
    assert SampledContrastHook(contrast, start=0, ramp=0, interval=1).factor(0) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, r"SAMPLED_CONTRAST\.TEMPERATURE: expected a positive number, found 0"),
        ({"anchors_per_class": 0}, "ANCHORS_PER_CLASS: expected at least 1, found 0"),
        ({"samples_per_class": 0}, "SAMPLES_PER_CLASS"),
        ({"noise_scale": -1.0}, "NOISE_SCALE"),
        ({"min_fill": 1.5}, r"MIN_FILL: expected a number in \[0, 1\], found 1.5"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SampledContrast(**options)
    with pytest.raises(ValueError, match="INTERVAL: expected at least 1, found 0"):
        SampledContrastHook(SampledContrast(), interval=0)
