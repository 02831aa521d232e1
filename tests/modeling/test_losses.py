"""Losses and gradients against the released GMMSeg head's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.gmm import class_log_density, component_log_prob
from gmm_anomaly.modeling.losses import IGNORED_COMPONENT, component_contrast, pixel_cross_entropy

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gmmseg_step.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("tag, step", [("A", 0), ("A", 2), ("B", 1), ("C", 0)])
def test_losses_and_gradients_are_those_of_the_reference(tag, step):
    prefix = f"{tag}__s{step}_"
    classes = int(GOLDEN[f"{tag}__cfg"][0])
    feature = golden(prefix + "base_feature").requires_grad_()
    feature_weight = golden(f"{tag}__feat_ln_weight").requires_grad_()
    class_weight = golden(f"{tag}__mask_ln_weight").requires_grad_()
    batch, dim, height, width = feature.shape
    pixels = feature.permute(0, 2, 3, 1).reshape(-1, dim)
    embedding = F.normalize(
        F.layer_norm(pixels, (dim,), feature_weight, golden(f"{tag}__feat_ln_bias")), dim=1
    )
    scales = golden(f"{tag}__init_diagonal") if step == 0 else golden(f"{tag}__s{step - 1}_diagonal_after")
    log_prob = component_log_prob(embedding, golden(prefix + "means_normalised_before"), scales)
    logits = F.layer_norm(
        class_log_density(log_prob), (classes,), class_weight, golden(f"{tag}__mask_ln_bias")
    )
    maps = logits.view(batch, height, width, classes).permute(0, 3, 1, 2)

    cross_entropy = pixel_cross_entropy(maps, golden(prefix + "gt_full")[:, 0].long(), average="all")
    target = golden(prefix + "contrast_target").flatten()
    target = torch.where(golden(prefix + "gt_small").long() == 255, IGNORED_COMPONENT, target)
    contrast = component_contrast(log_prob, target)
    assert cross_entropy.item() == pytest.approx(float(GOLDEN[prefix + "loss_ce"]), abs=1e-4)
    assert contrast.item() == pytest.approx(float(GOLDEN[prefix + "loss_contrast_unweighted"]), abs=1e-4)

    (cross_entropy + 0.01 * contrast).backward()
    for tensor, name in (
        (feature, "grad_base_feature"),
        (feature_weight, "grad_feat_ln_weight"),
        (class_weight, "grad_mask_ln_weight"),
    ):
        torch.testing.assert_close(tensor.grad, golden(prefix + name), rtol=1e-3, atol=1e-6)


def test_valid_average_is_torchs_mean_over_labelled_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    labels[0, :3] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), expected)
    share = (labels != 255).float().mean()
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, average="all"), expected * share)


def test_batch_without_a_label_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 4, 5, 6, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 5, 6), 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_component_255_is_trained():
    # The released code reuses 255 as "ignore" and so never trains component 0 of class 51 at five components.
    log_prob = torch.zeros(1, 60, 5, requires_grad=True)
    component_contrast(log_prob, torch.tensor([255])).backward()
    assert log_prob.grad[0, 51, 0] < 0
