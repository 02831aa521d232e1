"""The exportable module gives what the evaluation's way of inference gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.export.checking import compare, require_equal
from gmm_anomaly.export.exportable import ExportableSegmentor
from gmm_anomaly.export.images import check_batches
from gmm_anomaly.export.job import normal_inference
from gmm_anomaly.gmm import UnfittedMixtureError
from gmm_anomaly.modeling.decoders.blocks import _pooled_by_products
from gmm_anomaly.modeling.max_logit_moments import UncalibratedError
from gmm_anomaly.modeling.registry import DECODER_REGISTRY

DISTANCE = ["MODEL.FEATURE_DISTANCE.FEATURES", ["s1", "s3"]]
EMBEDDED = [
    "MODEL.FEATURE_DISTANCE.FEATURES", ["s3", "embedding"], "MODEL.FEATURE_DISTANCE.GAUSSIANS", "single",
    "MODEL.FEATURE_DISTANCE.EVIDENCE", "energy",
]  # fmt: skip
LOGIT_SCORES = ["msp", "max_logit", "energy", "entropy", "prototype_distance"]


def require_same(predictor, streets, limit=2e-6):
    module = ExportableSegmentor(predictor.scorer.model, predictor.score, image_format=predictor.image_format)
    batches = check_batches(streets, None)
    assert len({batch.shape[2:] for batch in batches}) == 3 and len(batches[-1]) == 2
    require_equal(compare(normal_inference(predictor), module, batches), limit)
    floating = [batch.float() for batch in batches[:1]]
    require_equal(compare(normal_inference(predictor), module, floating), limit)


@pytest.mark.parametrize("decoder", sorted(name for name, _ in DECODER_REGISTRY))
def test_every_decoder(decoder, streets, tiny):
    require_same(tiny.predictor("MODEL.DECODER.NAME", decoder), streets)


@pytest.mark.parametrize("score", [*LOGIT_SCORES, "gmm_likelihood", "hybrid", "feature_distance", "sml"])
def test_every_score(score, streets, tiny):
    predictor = tiny.predictor(*DISTANCE, "TEST.SCORES", ["sml"], score=score)
    require_same(predictor, streets)


@pytest.mark.parametrize(
    "overrides, score",
    [
        (["MODEL.CLASSIFIER.NAME", "softmax"], "energy"),
        (["MODEL.CLASSIFIER.NAME", "softmax", *DISTANCE], "hybrid"),
        (["MODEL.CLASSIFIER.NAME", "prototype"], "prototype_distance"),
        (["MODEL.GMM.REDUCTION", "logsumexp"], "gmm_density"),
        (["MODEL.GMM.PROJECTION", "none"], "gmm_density"),
        (["MODEL.GMM.LOGITS", "softmax"], "msp"),
        (["TEST.SCORE_ON", "features"], "gmm_density"),
        (["TEST.SCORE_ON", "features", *DISTANCE], "hybrid"),
        (EMBEDDED, "hybrid"),
        (["MODEL.CLASSIFIER.NAME", "softmax", *EMBEDDED], "hybrid"),
        (["MODEL.CLASSIFIER.NAME", "prototype", *EMBEDDED], "hybrid"),
    ],
)
def test_classifiers_and_ways_of_scoring(overrides, score, streets, tiny):
    require_same(tiny.predictor(*overrides, score=score), streets)


def test_channel_order_of_the_training_is_inside(streets, tiny):
    means = ["MODEL.PIXEL_MEAN", [20.0, 60.0, 200.0]]
    require_same(tiny.predictor(*means, image_format="BGR"), streets)


def test_running_prototypes_that_are_missing(streets, tiny):
    model = tiny.model("MODEL.CLASSIFIER.NAME", "prototype", "MODEL.PROTOTYPE.RUNNING_MEAN", True)
    model.classifier.predictor.weight.copy_(F.normalize(torch.randn(4, 12, 1, 1), dim=1))
    model.classifier.predictor.fitted.copy_(torch.tensor([True, True, False, True]))
    require_same(tiny.predictor(model=model, score="prototype_distance"), streets)


def test_classes_and_components_that_were_never_fitted_are_left_out(streets, tiny):
    model = tiny.model("MODEL.GMM.UNSEEN_CLASSES", "exclude")
    model.bank.fitted[1] = False
    model.bank.fitted[2, 0] = False
    predictor = tiny.predictor(model=model)
    require_same(predictor, streets)
    module = ExportableSegmentor(model, "gmm_density")
    segmentation, score = module(check_batches(streets, None)[0])
    assert bool((segmentation != 1).all()) and bool(score.isfinite().all())


def test_a_model_that_is_not_trained_is_refused(tiny):
    model = tiny.model()
    model.bank.fitted[3] = False
    with pytest.raises(UnfittedMixtureError, match="1 of 4 classes were never fitted"):
        ExportableSegmentor(model, "gmm_density")
    model.bank.fitted.fill_(False)
    with pytest.raises(UnfittedMixtureError, match="nothing to export"):
        ExportableSegmentor(model, "gmm_density")
    model = tiny.model(*DISTANCE, "TEST.SCORES", ["sml"])
    model.max_logit_moments.std.zero_()
    with pytest.raises(UncalibratedError):
        ExportableSegmentor(model, "sml")
    model.feature_distance.log_std.zero_()
    with pytest.raises(UnfittedMixtureError, match="--calibrate"):
        ExportableSegmentor(model, "hybrid")


@pytest.mark.parametrize(
    "overrides, score, message",
    [
        ([], "msp+gaussian_smoothing", "post-processes"),
        (["TEST.SLIDING_WINDOW.ENABLED", True], "msp", r"TEST\.SLIDING_WINDOW\.ENABLED False"),
        (["TEST.AUG.ENABLED", True], "msp", r"TEST\.AUG\.ENABLED False"),
        (["MODEL.CLASSIFIER.NAME", "softmax"], "gmm_density", "needs class densities"),
    ],
)
def test_what_is_no_network_is_refused(overrides, score, message, tiny):
    with pytest.raises(ValueError, match=message):
        ExportableSegmentor(tiny.model(*overrides), score)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="Linear cannot be exported"):
        ExportableSegmentor(torch.nn.Linear(2, 2), "msp")


def test_the_model_itself_stays_as_it_is(tiny):
    model = tiny.model()
    ExportableSegmentor(model, "gmm_density")
    assert type(model.classifier).__name__ == "GMMClassifier"
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (12, 6)])
@pytest.mark.parametrize("bins", [2, 3, 6])
def test_pooling_by_products_is_adaptive_pooling(size, bins):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(features, bins)
    torch.testing.assert_close(_pooled_by_products(features, bins), expected)
