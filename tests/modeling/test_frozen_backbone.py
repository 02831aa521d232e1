"""The backbone as it was before training stays in the model; frozen parts are neither kept nor run twice."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from gmm_anomaly.modeling.feature_distance import FrozenBackbone

# Keys of the backbone, and one of its levels.
BACKBONES = {
    "EfficientNet": (
        ("MODEL.TIMM.NAME", "test_efficientnet", "MODEL.BACKBONE.NAME", "build_timm_backbone"),
        "level3",
    ),
    "Swin": (("MODEL.TIMM.NAME", "swin_test", "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]), "level3"),
    "ViT": (("MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.NAME", "vit_test_dinov2"), "last"),
    "ResNet": (
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"),
        "res5",
    ),
}  # fmt: skip
IMAGES = [{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}]


@pytest.fixture
def build(config):
    def make(name, freeze_at, *overrides, kind="frozen"):
        keys, level = BACKBONES[name]
        torch.manual_seed(0)
        cfg = config(
            "MODEL.BACKBONE.NAME", "build_timm_backbone", *keys, "MODEL.BACKBONE.FREEZE_AT", freeze_at,
            "MODEL.DECODER.NAME", "SegFormerDecoder", "MODEL.DECODER.CHANNELS", 8,
            "MODEL.CLASSIFIER.NAME", "softmax", "MODEL.FEATURE_DISTANCE.FEATURES", [level],
            "MODEL.FEATURE_DISTANCE.BACKBONE", kind, "TEST.SCORES", ["energy"], *overrides,
        )  # fmt: skip
        return build_model(cfg), level

    return make


@torch.no_grad()
def pyramid(model, level):
    images = model.preprocess(IMAGES).tensor
    return model.outputs(images)[0][level]


@pytest.mark.parametrize("freeze_at", [0, 2])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_stay_those_of_before_training(build, name, freeze_at):
    model, level = build(name, freeze_at)
    before = pyramid(model.eval(), level)
    assert torch.equal(before, pyramid(build(name, freeze_at, kind="trained")[0].eval(), level))
    model.train()
    assert not any(module.training for module in model.frozen_backbone.modules())
    labels = {"sem_seg": torch.randint(0, 19, (64, 96))}
    sum(model([IMAGES[0] | labels]).values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.add_(0.5 * torch.randn(parameter.shape))
    model.eval()
    assert torch.equal(pyramid(model, level), before)
    with torch.no_grad():
        trained = model.backbone(model.preprocess(IMAGES).tensor)[level]
    assert not torch.allclose(trained, before)
    # A checkpoint carries it.
    other, _ = build(name, freeze_at)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(pyramid(other.eval(), level), before)


@pytest.mark.parametrize("name", ["EfficientNet", "Swin", "ResNet"])
def test_frozen_parts_are_shared_and_run_once(build, name):
    model, level = build(name, 2)
    frozen = {id(parameter) for parameter in model.backbone.parameters() if not parameter.requires_grad}
    copied = {id(parameter) for parameter in model.frozen_backbone.parameters()}
    assert frozen and frozen < copied
    # What is inside of the shared parts; their own hooks are called whether they run or not.
    counts, parts = {}, {part.module for part in model.frozen_backbone.shared}
    for module in set(model.backbone.modules()) - parts:
        module.register_forward_hook(lambda module, *_: counts.update({module: counts.get(module, 0) + 1}))
    for images in range(1, 3):
        pyramid(model.eval(), level)
        assert set(counts.values()) == {images}
    # Nothing of an image is held after it.
    assert all(part.last is None for part in model.frozen_backbone.shared)


def test_a_wholly_frozen_backbone_needs_no_copy(build):
    model, level = build("EfficientNet", 5)
    assert model.frozen_backbone is None
    assert (
        build("EfficientNet", 0, "MODEL.FEATURE_DISTANCE.FEATURES", ["embedding"])[0].frozen_backbone is None
    )
    # Of a ViT the pyramid is trained; the transformer is in both.
    model, level = build("ViT", 5)
    assert isinstance(model.frozen_backbone, FrozenBackbone)
    assert model.frozen_backbone.backbone.net is model.backbone.net
    assert pyramid(model.eval(), level).shape == (1, 24, 4, 6)
