"""Classes whose mixture was never fitted are left out, as if the model did not have them, and named."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, UnfittedMixtureError
from gmm_anomaly.modeling.classifiers import GMMClassifier, build_classifier
from gmm_anomaly.modeling.inference import Look, Window
from gmm_anomaly.modeling.restoration import restore
from gmm_anomaly.scores import PixelOutputs, get_scores

CLASSES, UNSEEN = 5, 3
KNOWN = [index for index in range(CLASSES) if index != UNSEEN]


def classifier(classes: list[int], **options) -> GMMClassifier:
    """A linear classifier whose mixtures, norm weights and biases depend on the class's number alone."""
    bank = GaussianMixtureBank(len(classes), 2, 6)
    model = GMMClassifier(4, bank, dropout=0, projection="linear", **options)
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(CLASSES, 2, 6, generator=generator)
    scales = torch.rand(CLASSES, 2, 6, generator=generator) + 0.1
    weights, biases = torch.rand(2, CLASSES, generator=generator)
    convolution = torch.randn(6, 4, 1, 1, generator=generator)
    with torch.no_grad():
        bank.means.copy_(F.normalize(means[classes], dim=2))
        bank.scales.copy_(scales[classes])
        model.class_norm.weight.copy_(weights[classes])
        model.class_norm.bias.copy_(biases[classes])
        model.project[1].weight.copy_(convolution)
        model.project[1].bias.zero_()
    bank.fitted.fill_(True)
    return model.eval()


def features() -> torch.Tensor:
    return torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(2))


def with_unseen(**options) -> GMMClassifier:
    model = classifier(list(range(CLASSES)), **options)
    model.bank.fitted[UNSEEN] = False
    return model


@torch.no_grad()
def test_excluding_a_class_is_not_having_it():
    found, expected = with_unseen()(features()), classifier(KNOWN)(features())
    torch.testing.assert_close(found.logits[:, KNOWN], expected.logits)
    torch.testing.assert_close(found.log_density[:, KNOWN], expected.log_density)
    assert not (found.logits.argmax(1) == UNSEEN).any()
    assert not found.logits.softmax(1)[:, UNSEEN].any()


@torch.no_grad()
def test_scores_without_the_class_are_those_of_a_model_without_it():
    names = ["gmm_density", "gmm_likelihood", "msp", "max_logit", "energy", "entropy", "hybrid"]
    scores = get_scores(names, given={"logits", "log_density", "feature_distance"})
    distance = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))
    moments = (torch.tensor(3.0), torch.tensor(2.0))

    def outputs(model):
        classified = model(features())
        return PixelOutputs(
            logits=classified.logits, log_density=classified.log_density,
            feature_distance=distance, hybrid_moments=moments,
        )  # fmt: skip

    found, expected = outputs(with_unseen()), outputs(classifier(KNOWN))
    for name, score in scores.items():
        # The entropy is divided by log C, of all the classes that the model has.
        factor = math.log(len(KNOWN)) / math.log(CLASSES) if name == "entropy" else 1.0
        torch.testing.assert_close(score(found), factor * score(expected), msg=name)


@torch.no_grad()
def test_nothing_becomes_nan_on_the_way_to_the_image():
    # An enlargement by a whole factor and two windows: weights of 0, and a mean over overlapping tiles.
    classified = with_unseen()(features())
    tiles = [PixelOutputs(classified.logits[i], classified.log_density[i]) for i in range(2)]
    windows = [Window(top=0, left=0, height=20, width=24), Window(top=0, left=8, height=20, width=24)]
    looks = [Look((20, 32), windows, (20, 24), False, tiles)]
    score = get_scores(["entropy"], given={"logits"})["entropy"]
    logits, maps = restore(looks, (40, 64), "logits", lambda part: score(part)[None])
    assert logits.isfinite().all() and maps.isfinite().all()
    assert maps.shape == (1, 40, 64) and not (logits.argmax(0) == UNSEEN).any()


def test_the_classes_are_named_once(caplog):
    model = with_unseen(class_names=["road", "car", "sky", "tram", "tree"])
    with caplog.at_level("WARNING", logger="gmm_anomaly"):
        for _ in range(2):
            model(features())
    (message,) = [record.message for record in caplog.records]
    assert "mixtures of 1 of 5 classes were never fitted" in message and "leave them out: tram." in message
    # Nothing fitted at all is the bank's own refusal; training needs no mixture.
    model.bank.fitted.fill_(False)
    with pytest.raises(UnfittedMixtureError, match="never been fitted"):
        model(features())
    assert model.train().losses(features(), torch.zeros(2, 5, 6, dtype=torch.int64))


def test_keys_reach_the_classifier(config):
    MetadataCatalog.get("four_classes").set(stuff_classes=["a", "b", "c", "d"])
    keys = ["DATASETS.TRAIN", ("four_classes",), "MODEL.GMM.MEMORY_SIZE", 30]
    cfg = config("MODEL.CLASSIFIER.NUM_CLASSES", 4, *keys)
    model = build_classifier(cfg, 8)
    assert model.class_names == ["a", "b", "c", "d"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    assert build_classifier(cfg, 8).class_names is None, "another number of names than of classes"
