"""The exportable module gives what the evaluation's way of inference gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gmm_anomaly.export.command import check_batches, compare, normal_inference
from gmm_anomaly.export.network import ExportableSegmentor
from gmm_anomaly.gmm import UnfittedMixtureError
from gmm_anomaly.modeling.max_logit_moments import UnfittedMomentsError
from gmm_anomaly.modeling.registry import DECODER_REGISTRY

DISTANCE = ["MODEL.FEATURE_DISTANCE.FEATURES", ["s1", "s3"]]
EMBEDDED = [
    "MODEL.FEATURE_DISTANCE.FEATURES", ["s3", "embedding"], "MODEL.FEATURE_DISTANCE.COMPONENTS", 1,
    "MODEL.FEATURE_DISTANCE.HYBRID_WITH", "energy",
]  # fmt: skip


def require_same(predictor, streets, limit=2e-6):
    module = ExportableSegmentor(predictor.model, predictor.score, image_format=predictor.image_format)
    batches = check_batches(streets, None)
    assert len({batch.shape[2:] for batch in batches}) == 3 and len(batches[-1]) == 2
    compare(normal_inference(predictor), module, [*batches, batches[0].float()], limit)


@pytest.mark.parametrize("decoder", sorted(name for name, _ in DECODER_REGISTRY))
def test_every_decoder_and_the_channel_order_of_the_training(decoder, streets, tiny):
    means = ["MODEL.PIXEL_MEAN", [20.0, 60.0, 200.0]]
    require_same(tiny.predictor("MODEL.DECODER.NAME", decoder, *means, image_format="BGR"), streets)


def test_every_score(streets, tiny):
    scores = ["msp", "max_logit", "energy", "entropy", "prototype_distance", "gmm_likelihood", "hybrid"]
    scores += ["feature_distance", "sml"]
    model = tiny.model(*DISTANCE, "TEST.SCORES", scores)
    for score in scores:
        require_same(tiny.predictor(model=model, score=score), streets)


@pytest.mark.parametrize(
    "overrides, score",
    [
        (["MODEL.CLASSIFIER.NAME", "softmax"], "energy"),
        (["MODEL.CLASSIFIER.NAME", "softmax", *EMBEDDED], "hybrid"),
        (["MODEL.CLASSIFIER.NAME", "prototype", *EMBEDDED], "hybrid"),
        (["MODEL.GMM.REDUCTION", "logsumexp", "MODEL.GMM.PROJECTION", "none"], "gmm_density"),
        (["MODEL.GMM.LOGITS", "softmax"], "msp"),
        (["TEST.SCORE_ON", "features"], "gmm_density"),
        (["TEST.SCORE_ON", "features", *DISTANCE], "hybrid"),
        (EMBEDDED, "hybrid"),
    ],
)
def test_classifiers_and_ways_of_scoring(overrides, score, streets, tiny):
    require_same(tiny.predictor(*overrides, score=score), streets)


def test_running_prototypes_that_are_missing(streets, tiny):
    options = ["MODEL.CLASSIFIER.NAME", "prototype", "MODEL.PROTOTYPE.MOMENTUM", 0.99]
    model = tiny.model(*options, score="prototype_distance")
    model.classifier.predictor.weight.copy_(F.normalize(torch.randn(4, 12, 1, 1), dim=1))
    model.classifier.predictor.fitted.copy_(torch.tensor([True, True, False, True]))
    require_same(tiny.predictor(model=model, score="prototype_distance"), streets)


def test_classes_and_components_that_were_never_fitted_are_left_out(streets, tiny):
    model = tiny.model()
    model.bank.fitted[1] = False
    model.bank.fitted[2, 0] = False
    require_same(tiny.predictor(model=model), streets)
    segmentation, score = ExportableSegmentor(model, "gmm_density")(check_batches(streets, None)[0])
    assert bool((segmentation != 1).all()) and bool(score.isfinite().all())
    # The model itself stays as it is.
    assert type(model.classifier).__name__ == "GMMClassifier"
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_is_not_trained_is_refused(tiny):
    model = tiny.model(*DISTANCE, score="sml")
    model.max_logit_moments.std.zero_()
    with pytest.raises(UnfittedMomentsError):
        ExportableSegmentor(model, "sml")
    model = tiny.model(*DISTANCE, score="hybrid")
    model.feature_distance.log_std.zero_()
    with pytest.raises(UnfittedMixtureError, match="--fit-feature-distance"):
        ExportableSegmentor(model, "hybrid")
    model.bank.fitted.fill_(False)
    with pytest.raises(UnfittedMixtureError, match="never been fitted"):
        ExportableSegmentor(model, "hybrid")


def test_what_is_no_network_is_refused(tiny):
    for overrides, score, message in (
        ([], "msp+gaussian_smoothing", "post-processes"),
        (["TEST.SLIDING_WINDOW.ENABLED", True], "msp", r"TEST\.SLIDING_WINDOW\.ENABLED False"),
        (["TEST.AUG.ENABLED", True], "msp", r"TEST\.AUG\.FLIP False"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportableSegmentor(tiny.model(*overrides, score="msp"), score)
    with pytest.raises(ValueError, match="Linear cannot be exported"):
        ExportableSegmentor(nn.Linear(2, 2), "msp")
