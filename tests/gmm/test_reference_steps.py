"""Whole training steps of the released GMMSeg head: assignment, memory, EM and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, class_log_density, sinkhorn_assign_all

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gmmseg_step.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("tag", ["A", "B", "C"])
def test_steps_are_those_of_the_reference(tag):
    classes, components, dim, _, samples, interval, steps, *_ = GOLDEN[f"{tag}__cfg"].tolist()
    momentum_mean, momentum_scale = GOLDEN[f"{tag}__gamma"].tolist()
    bank = GaussianMixtureBank.from_reference_state(
        golden(f"{tag}__init_means"),
        golden(f"{tag}__init_diagonal"),
        golden(f"{tag}__init_queue"),
        golden(f"{tag}__init_queue_ptr"),
        samples_per_update=samples,
        momentum_mean=momentum_mean,
        momentum_scale=momentum_scale,
    )
    for step in range(steps):
        prefix = f"{tag}__s{step}_"
        labels = golden(prefix + "gt_small").long()
        features = golden(prefix + "feat")
        log_prob = bank.log_prob(features)
        torch.testing.assert_close(
            log_prob.flatten(1), golden(prefix + "logprob").flatten(1), rtol=0, atol=2e-4
        )

        logits = F.layer_norm(
            class_log_density(log_prob),
            (classes,),
            golden(f"{tag}__mask_ln_weight"),
            golden(f"{tag}__mask_ln_bias"),
        )
        expected_logits = golden(prefix + "out_seg").permute(0, 2, 3, 1).reshape(-1, classes)
        torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)

        own = log_prob[torch.arange(len(labels)), labels.clamp(max=classes - 1)]
        assignment, _ = sinkhorn_assign_all(own, labels, classes)
        known = labels != 255
        target = torch.where(known, labels * components + assignment, 255)
        assert torch.equal(target, golden(prefix + "contrast_target").flatten())

        correct = logits.argmax(1) == labels
        stored = F.one_hot(assignment, components) * (correct & known)[:, None]
        assert torch.equal(stored.to(torch.uint8), golden(prefix + "q"))

        bank.record(features, labels, assignment, correct)
        if step % interval == 0:
            bank.update(labels[known].unique())
            torch.testing.assert_close(bank.means, golden(prefix + "means_after"), rtol=0, atol=1e-5)
        else:
            bank.commit()
            torch.testing.assert_close(bank.unit_means, golden(prefix + "means_after"), rtol=0, atol=1e-5)
        torch.testing.assert_close(bank.scales, golden(prefix + "diagonal_after"), rtol=0, atol=1e-5)
        assert torch.equal(bank.memory.pointer, golden(prefix + "queue_ptr_after").long())
        ring = bank.memory.ring[:, : bank.memory.slots].transpose(1, 2)
        torch.testing.assert_close(ring, golden(prefix + "queue_after"), rtol=0, atol=1e-5)


def test_choice_of_samples_is_the_reference_choice():
    from gmm_anomaly.gmm.memory import evenly_spaced_indices

    for samples in (20, 6):
        expected = golden(f"rnd_sample_idx{samples}").long()
        counts = torch.arange(samples + 1, samples + 1 + len(expected))
        indices, valid = evenly_spaced_indices(counts, samples)
        assert valid.all()
        assert torch.equal(indices, expected)
