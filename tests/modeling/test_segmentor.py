"""The segmentor's contract with Detectron2, over its backbones and classifiers."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from gmm_anomaly.engine import EMHook
from gmm_anomaly.gmm import UnfittedMixtureError
from gmm_anomaly.modeling.losses import resized_labels
from tests.modeling.conftest import SMALL, batch, config_of

CLASSES = 5


def config(*overrides):
    return config_of(*SMALL, *overrides)


def fitted(model):
    EMHook(model.bank)
    model.train()
    model(batch())
    model.bank.update()
    return model


@pytest.mark.parametrize("classifier", ["gmm", "softmax"])
def test_training_gives_losses_and_inference_gives_maps(classifier):
    model = build_model(config("MODEL.CLASSIFIER.NAME", classifier))
    if classifier == "gmm":
        EMHook(model.bank)
    losses = model(batch())
    assert set(losses) == ({"loss_ce", "loss_contrast", "loss_guide"} if classifier == "gmm" else {"loss_ce"})
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters()), "an unused parameter breaks data parallelism"
    if classifier == "gmm":
        model.bank.update()
    model.eval()
    with torch.no_grad():
        small, resized = model([batch()[1], {**batch()[0], "height": 33, "width": 47}])
    assert small["sem_seg"].shape == (CLASSES, 70, 90) and small["anomaly_score"].shape == (70, 90)
    assert resized["sem_seg"].shape == (CLASSES, 33, 47) and resized["anomaly_score"].shape == (33, 47)
    own = ["gmm_density"] if classifier == "gmm" else []
    assert list(small["anomaly_scores"]) == [*own, "msp", "max_logit", "energy", "entropy"]
    assert small["anomaly_score"] is next(iter(small["anomaly_scores"].values()))
    torch.testing.assert_close(small["anomaly_scores"]["msp"], 1 - small["sem_seg"].softmax(0).amax(0))


def test_training_without_the_em_hook_says_so_once_and_keeps_nothing(caplog):
    model = build_model(config())
    with caplog.at_level("WARNING", logger="gmm_anomaly"):
        for _ in range(3):
            model(batch())
    (message,) = [record.message for record in caplog.records]
    assert "without EMHook" in message and "EMHook.from_config(cfg, model.bank)" in message
    model.bank.update()
    assert not model.bank.is_fitted and not model.bank.memory.count.any()


def test_channels_last_acts_wherever_a_model_is_built():
    torch.manual_seed(0)
    plain = build_model(config("MODEL.CLASSIFIER.NAME", "softmax")).eval()
    other = build_model(config("MODEL.CLASSIFIER.NAME", "softmax", "MODEL.CHANNELS_LAST", True)).eval()
    other.load_state_dict(plain.state_dict())
    layer = other.classifier.predictor
    formats = []
    layer.register_forward_hook(
        lambda _, inputs, __: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        found, expected = other(batch())[0], plain(batch())[0]
    assert formats == [True]
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-4)


def test_forward_alone_never_changes_the_mixture():
    model = fitted(build_model(config()))
    before = {name: buffer.clone() for name, buffer in model.bank.named_buffers()}
    for _ in range(3):
        sum(model(batch()).values()).backward()
    with torch.no_grad():
        model.eval()(batch())
    for name, buffer in model.bank.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model.bank.update()
    assert not torch.equal(model.bank.means, before["means"])


@pytest.mark.parametrize("projection, convolutions", [("linear", 1), ("released", 1), ("mlp", 2)])
def test_projections_give_unit_embeddings(projection, convolutions):
    classifier = build_model(config("MODEL.GMM.PROJECTION", projection)).classifier
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in classifier.project) == convolutions
    embedding = classifier.embed(torch.randn(2, 16, 6, 7))
    assert embedding.shape == (2 * 6 * 7, 8)
    # A ReLU may leave nothing of a pixel: its embedding is zero.
    length = embedding.norm(dim=1)
    torch.testing.assert_close(length[length > 0], torch.ones(int((length > 0).sum())))
    assert (length > 0).sum() > 70 and (projection == "released" or (length > 0).all())
    # The released code's ReLU leaves no negative entry before the LayerNorm.
    projected = classifier.project(torch.randn(2, 16, 6, 7))
    assert (projected.amin() >= 0) == (projection == "released")


def test_unfitted_mixture_refuses_to_score():
    with pytest.raises(UnfittedMixtureError, match="never been fitted"):
        build_model(config()).eval()(batch())


def test_density_stays_float32_under_autocast():
    model = fitted(build_model(config()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch())
        model.eval()
        result = model(batch())[0]
    assert losses["loss_contrast"].dtype == torch.float32
    assert result["anomaly_score"].dtype == result["sem_seg"].dtype == torch.float32


def test_paper_rules_start_without_waiting():
    model = build_model(config("MODEL.GMM.WARM_START", False))
    assert model.bank.warm_start is None and bool(model.bank.started.all())
    assert model.classifier.class_norm.weight.unique().tolist() == [1.0]
    assert float(model(batch())["loss_contrast"]) > 0
    assert build_model(config()).classifier.class_norm.weight.unique().tolist() == [3.0]


@pytest.mark.parametrize(
    "keys",
    [
        ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"],
        ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.DECODER.NAME", "SegFormerDecoder"],
        ["MODEL.TIMM.NAME", "resnet_test", "MODEL.DECODER.NAME", "UPerNetDecoder"],
        ["MODEL.TIMM.NAME", "efficientnet_lite0"],
        ["MODEL.TIMM.NAME", "hrnet_w18_small", "MODEL.DECODER.NAME", "OCRNetDecoder",
         "MODEL.DECODER.IN_FEATURES", ["level1", "level4"]],
        ["MODEL.TIMM.NAME", "swin_test", "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]],
        ["MODEL.TIMM.NAME", "convnext_test", "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]],
    ],
    ids=["resnet", "mit", "timm-resnet", "efficientnet", "hrnet", "swin", "convnext"],
)  # fmt: skip
def test_an_odd_size_is_not_padded(keys):
    """As in MMSegmentation: the logits of the plain network, enlarged to the image."""
    model = fitted(build_model(config(*keys))).eval()
    items = batch((65, 77), (91, 70))
    with torch.no_grad():
        image = (items[0]["image"].float() - model.pixel_mean) / model.pixel_std
        plain = model.classifier(model.decoder(model.backbone(image[None])).features).logits
        expected = torch.nn.functional.interpolate(plain, (65, 77), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(items[:1])[0]["sem_seg"], expected[0], rtol=1e-4, atol=1e-4)
        # A batch has the size of its largest image in each direction.
        for found, item in zip(model(items), items, strict=True):
            assert found["anomaly_score"].shape == item["sem_seg"].shape
            assert found["anomaly_score"].isfinite().all()


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "MODEL.BACKBONE.NAME",
            "build_resent",
            "unknown name 'build_resent'; known are .*build_timm_backbone",
        ),
        ("MODEL.DECODER.NAME", "Deeplab", "unknown name 'Deeplab'; known are .*DeepLabV3PlusDecoder"),
        ("MODEL.CLASSIFIER.NAME", "gm", "unknown name 'gm'; known are gmm, none, prototype, softmax"),
        ("MODEL.DECODER.IN_FEATURES", ["res2"], r"at least 2 of the backbone's features \(level1"),
        ("MODEL.TIMM.NAME", "efficientnet_lite99", "MODEL.TIMM: timm cannot build"),
        ("MODEL.GMM.PROJECTION", "conv", "MODEL.GMM.PROJECTION: expected .*found 'conv'"),
    ],
)
def test_wrong_keys_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(config(key, value))


def test_labels_at_feature_resolution_are_the_sampled_ones():
    # Nearest sampling at stride 4 takes every fourth pixel, as the released code's resizing does.
    labels = torch.randint(0, 255, (1, 64, 80))
    assert torch.equal(resized_labels(labels, (16, 20)), labels[..., ::4, ::4])
