"""Cosine prototypes against PAnS's numbers and float64; running-mean prototypes against explicit means.

Run as a script, this file is two ranks of a process group, which write their states into a folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from gmm_anomaly.engine.hooks import PrototypeHook
from gmm_anomaly.modeling.classifiers import (
    PrototypeClassifier,
    RunningMeanPrototypes,
    UnfittedPrototypesError,
    build_classifier,
)
from gmm_anomaly.modeling.classifiers.prototype import CosinePrototypes, cosine_logits
from gmm_anomaly.scores import get_scores
from tests.modeling.conftest import config_of

CLASSES, CHANNELS = 4, 6

SCORE = get_scores(["prototype_distance"], given={"logits"})["prototype_distance"]


def config(*overrides):
    keys = ["MODEL.CLASSIFIER.NAME", "prototype", "MODEL.CLASSIFIER.NUM_CLASSES", CLASSES]
    return config_of(*keys, *overrides)


def batch(seed, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, CHANNELS, 5, 7, generator=generator) + 0.5
    labels = torch.randint(0, classes, (2, 20, 28), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return features, labels


def mean_directions(batches):
    """(C, F) float64 mean direction of each class over batches, pixel by pixel; zero for an absent class."""
    total = torch.zeros(CLASSES, CHANNELS, dtype=torch.float64)
    for features, labels in batches:
        for image, row, column in np.ndindex(2, 5, 7):
            label = int(labels[image, 4 * row, 4 * column])
            if label != 255:
                pixel = features[image, :, row, column].double()
                total[label] += pixel / pixel.norm()
    return F.normalize(total, dim=1)


def directions(prototypes):
    return prototypes.weight[:, :, 0, 0].double()


@pytest.fixture(scope="module")
def golden(data_dir):
    return np.load(data_dir / "pans_cosine.npz")


@pytest.fixture
def pans(golden):
    classifier = PrototypeClassifier(CosinePrototypes(64, 13), 13).eval()
    classifier.predictor.load_state_dict({"weight": torch.from_numpy(golden["weight"])})
    return classifier


@pytest.mark.parametrize("index", [0, 1, 2])
def test_logits_and_score_are_those_of_pans(golden, pans, index):
    classified = pans(torch.from_numpy(golden[f"feat_{index}"]))
    np.testing.assert_allclose(classified.logits.detach(), golden[f"logits_{index}"], atol=1e-5)
    score = SCORE(classified).detach()
    np.testing.assert_allclose(score, 1 - golden[f"conf_{index}"], atol=1e-5)
    assert classified.log_density is None and not pans.generative


def test_upsampled_scores_and_predictions_are_those_of_pans(golden, pans):
    def up(x):
        return F.interpolate(x, size=(48, 80), mode="bilinear", align_corners=False)

    scores, probabilities = [], []
    with torch.no_grad():
        for index in range(3):
            classified = pans(torch.from_numpy(golden[f"feat_{index}"]))
            scores.append(up(SCORE(classified)[:, None])[0, 0])
            probabilities.append(up(classified.logits)[0].softmax(0))
    np.testing.assert_allclose(scores[0], golden["single_anomaly"], atol=1e-5)
    np.testing.assert_allclose(torch.stack(scores).mean(0), golden["multi_anomaly"], atol=1e-5)
    assert (probabilities[0].argmax(0).numpy() != golden["single_pred"]).mean() < 1e-3
    assert (sum(probabilities).argmax(0).numpy() != golden["multi_pred"]).mean() < 1e-3


def test_pixels_without_direction_have_no_gradient_and_the_others_the_right_one():
    features, _ = batch(0)
    features[0, :, 0, 0] = 0
    features = features.double().requires_grad_()
    weight = torch.randn(CLASSES, CHANNELS, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(lambda x, w: cosine_logits(x, w), (features[:, :, 1:2, :2], weight))
    cosine_logits(features, weight).sum().backward()
    assert features.grad.isfinite().all() and not features.grad[0, :, 0, 0].any()


def test_loss_is_the_cross_entropy_of_upsampled_logits_in_float32():
    features, labels = batch(2)
    classifier = PrototypeClassifier(CosinePrototypes(CHANNELS, CLASSES), CLASSES, dropout=0.0)
    loss = classifier.losses(features, labels)["loss_ce"]
    weight = F.normalize(directions(classifier.predictor), dim=1)
    logits = 10 * torch.einsum("bfhw,cf->bchw", F.normalize(features.double(), dim=1), weight)
    logits = F.interpolate(logits, size=(20, 28), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert classifier.predictor.weight.grad.abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = classifier(features.bfloat16()).logits
    torch.testing.assert_close(half, classifier(features.bfloat16().float()).logits)


def test_running_prototypes_are_running_means_of_directions():
    prototypes = RunningMeanPrototypes(CHANNELS, CLASSES, momentum=0.8)
    expected = torch.zeros(CLASSES, CHANNELS, dtype=torch.float64)
    # Class 3 appears in the second step only; the third step records two batches.
    for step in ([batch(0, classes=3)], [batch(1)], [batch(2, classes=2), batch(3, classes=2)]):
        for features, labels in step:
            prototypes.record(features, labels)
        prototypes.update()
        mean = mean_directions(step)
        known, present = expected.norm(dim=1) > 0, mean.norm(dim=1) > 0
        blended = torch.where(known[:, None], 0.8 * expected + 0.2 * mean, mean)
        expected = torch.where(present[:, None], F.normalize(blended, dim=1), expected)
        torch.testing.assert_close(directions(prototypes), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(prototypes.fitted, expected.norm(dim=1) > 0)
    before = prototypes.weight.clone()
    prototypes.update()
    assert torch.equal(prototypes.weight, before), "nothing was recorded since"


def test_pixels_that_are_not_finite_or_not_labelled_do_not_move_prototypes():
    features, labels = batch(4)
    clean, spoilt = (RunningMeanPrototypes(CHANNELS, CLASSES) for _ in range(2))
    labels[0, :4, :4] = 255
    clean.record(features, labels)
    features[0, 2, 0, 0] = torch.nan
    spoilt.record(features, labels.masked_fill(labels == 255, -1))
    clean.update()
    spoilt.update()
    assert torch.equal(clean.weight, spoilt.weight)
    nobody = RunningMeanPrototypes(CHANNELS, CLASSES)
    nobody.record(features, torch.full_like(labels, 255))
    nobody.update()
    assert not nobody.fitted.any() and not nobody.weight.any()


def test_unfitted_running_prototypes_refuse_to_score():
    classifier = build_classifier(config("MODEL.PROTOTYPE.MOMENTUM", 0.99), CHANNELS).eval()
    features, labels = batch(7, classes=2)
    with pytest.raises(UnfittedPrototypesError, match="never been fitted.*MODEL.WEIGHTS"):
        classifier(features)
    classifier.train().losses(features, labels)
    classifier.predictor.update()
    logits = classifier.eval()(features).logits
    # Classes 2 and 3 were never seen: never predicted, no part of the score.
    assert (logits[:, 2:] == -10).all() and (logits[:, :2] > -10).all()
    loaded = build_classifier(config("MODEL.PROTOTYPE.MOMENTUM", 0.99), CHANNELS).eval()
    loaded.load_state_dict(classifier.state_dict())
    assert torch.equal(loaded(features).logits, logits)


def test_first_loss_without_prototypes_has_a_finite_zero_gradient():
    classifier = build_classifier(config("MODEL.PROTOTYPE.MOMENTUM", 0.99), CHANNELS)
    features, labels = batch(8)
    features.requires_grad_()
    loss = classifier.losses(features, labels)["loss_ce"]
    loss.backward()
    torch.testing.assert_close(loss.item(), float(np.log(CLASSES)))
    assert not features.grad.any()


def test_hook_updates_after_each_step():
    model = nn.Sequential(build_classifier(config("MODEL.PROTOTYPE.MOMENTUM", 0.99), CHANNELS))
    hook = PrototypeHook(model)
    hook.trainer = SimpleNamespace(iter=0)
    hook.before_train()
    model[0].losses(*batch(9))
    hook.after_step()
    torch.testing.assert_close(
        directions(model[0].predictor), mean_directions([batch(9)]), rtol=1e-5, atol=1e-6
    )


def test_config_gives_the_classifier():
    assert isinstance(build_classifier(config(), CHANNELS).predictor, CosinePrototypes)
    made = build_classifier(config("MODEL.PROTOTYPE.MOMENTUM", 0.5), CHANNELS)
    assert made.predictor.momentum == 0.5 and not list(made.parameters())


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'rendezvous'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    prototypes = RunningMeanPrototypes(CHANNELS, CLASSES, momentum=0.8)
    if rank == 1:
        # What another rank holds at the start counts as lost.
        prototypes.weight.fill_(1.0)
        prototypes.fitted.fill_(True)
    prototypes.broadcast()
    for step in range(3):
        features, labels = batch(10 * step + rank)
        # In the second step rank 1 has no labelled pixel.
        prototypes.record(features, torch.full_like(labels, 255) if (step, rank) == (1, 1) else labels)
        prototypes.update()
    torch.save(prototypes.state_dict(), folder / f"rank{rank}.pth")
    dist.destroy_process_group()


def test_ranks_agree_with_one_process_that_sees_all_pixels(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    one = RunningMeanPrototypes(CHANNELS, CLASSES, momentum=0.8)
    for step in range(3):
        for rank in range(2):
            if (step, rank) != (1, 1):
                one.record(*batch(10 * step + rank))
        one.update()
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2))
    for name, expected in one.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    # Forked after the imports, which take most of the time.
    child = os.fork()
    run_rank(0 if child else 1, Path(sys.argv[1]))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
