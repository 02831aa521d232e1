"""What every backbone of the registry holds to: shapes, odd sizes, memory format, checkpointing, freezing."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.structures import ImageList

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.modeling import build_backbone

NARROW = ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
          "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16]  # fmt: skip
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
FOUR = ["MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]]
VIT = ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.OUT_CHANNELS", 16, "MODEL.VIT.NAME"]
# Overrides, strides of the outputs.
FAMILIES = {
    "resnet18": (["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18, *NARROW,
                  "MODEL.RESNETS.RES2_OUT_CHANNELS", 64], [4, 8, 16, 32]),
    "resnet50": (["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50, *NARROW],
                 [4, 8, 16, 32]),
    "resnet50-stride16": (["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", *NARROW,
                           "MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.RES5_MULTI_GRID", [1, 2, 4]],
                          [4, 8, 16, 16]),
    "resnet50-stride8": (["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", *NARROW,
                          "MODEL.RESNETS.RES4_DILATION", 2, "MODEL.RESNETS.RES5_DILATION", 4,
                          "MODEL.RESNETS.STEM_TYPE", "deeplab"], [4, 8, 8, 8]),
    "timm-resnet18-stride8": ([*TIMM, "resnet18", "MODEL.TIMM.OUTPUT_STRIDE", 8], [4, 8, 8, 8]),
    "efficientnet": ([*TIMM, "tf_efficientnet_lite0"], [4, 8, 16, 32]),
    "convnext": ([*TIMM, "convnext_atto", *FOUR], [4, 8, 16, 32]),
    "hrnet": ([*TIMM, "hrnet_w18_small"], [4, 8, 16, 32]),
    "swin": ([*TIMM, "swin_tiny_patch4_window7_224", *FOUR], [4, 8, 16, 32]),
    "mit": (["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.NAME", "mit_b0"], [4, 8, 16, 32]),
    "vit-patch16": ([*VIT, "vit_tiny_patch16_224"], [4, 8, 16, 32]),
    "vit-patch14": ([*VIT, "vit_small_patch14_dinov2", "MODEL.VIT.OUT_FEATURES", ["p2", "p4"]], [4, 16]),
}  # fmt: skip
EVERY = pytest.mark.parametrize("family", FAMILIES)
# What freezing the pretrained network leaves trainable.
ADDED = ("output_norms.", "simfp_")


def build(family, *more):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *FAMILIES[family][0], *more])
    torch.manual_seed(0)
    return build_backbone(cfg)


@cache
def built(family):
    """A backbone with random weights and lively norms, built once; tests that change it take a copy."""
    backbone = build(family)
    for parameter in backbone.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return backbone


@cache
def image():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def objective(backbone):
    """A number that depends on every feature, differently on each of its entries."""
    torch.manual_seed(2)  # stochastic depth
    features = backbone(image()).values()
    generator = torch.Generator().manual_seed(3)
    return sum((torch.randn(f.shape, generator=generator) * f).mean() for f in features)


def statistics(backbone):
    return {name: value.clone() for name, value in backbone.named_buffers() if "running_" in name}


def test_all_of_the_projects_backbones_are_held_to_this():
    own = {name for name, builder in BACKBONE_REGISTRY if builder.__module__.startswith("gmm_anomaly")}
    overrides = [overrides for overrides, _ in FAMILIES.values()]
    assert own and own <= {value[value.index("MODEL.BACKBONE.NAME") + 1] for value in overrides}


@EVERY
def test_output_shape_is_true_at_every_size(family):
    backbone = copy.deepcopy(built(family)).eval()
    shapes = backbone.output_shape()
    assert [shape.stride for shape in shapes.values()] == FAMILIES[family][1]
    for size in ((64, 96), (65, 83)):
        images = torch.nn.functional.interpolate(image(), size=size)
        padded = ImageList.from_tensors(list(images), backbone.size_divisibility).tensor
        extra = [after - before for after, before in zip(padded.shape[-2:], size, strict=True)]
        assert max(extra) < max(backbone.size_divisibility, 1)
        with torch.no_grad():
            features = backbone(padded)
        assert list(features) == list(shapes)
        for name, shape in shapes.items():
            height, width = (-(-length // shape.stride) for length in padded.shape[-2:])
            assert features[name].shape == (1, shape.channels, height, width), (name, size)


@EVERY
def test_channels_last_changes_nothing_but_the_memory(family):
    backbone = copy.deepcopy(built(family)).eval()
    with torch.no_grad():
        expected = backbone(image())
        backbone.to(memory_format=torch.channels_last)
        found = backbone(image().to(memory_format=torch.channels_last))
    for name, feature in found.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-3, atol=1e-4)


@EVERY
def test_gradient_checkpointing_changes_nothing_but_the_memory(family):
    plain = copy.deepcopy(built(family)).train()
    frugal = build(family, "MODEL.BACKBONE.GRADIENT_CHECKPOINTING", True).train()
    frugal.load_state_dict(plain.state_dict())
    kept = {}
    for name, backbone in (("plain", plain), ("frugal", frugal)):
        kept[name] = 0

        def count(tensor, name=name):
            kept[name] += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = objective(backbone)
        loss.backward()
    assert kept["frugal"] < 0.7 * kept["plain"]
    for (name, first), second in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert first.grad is not None, f"{name}: an unused parameter breaks data parallelism"
        torch.testing.assert_close(second.grad, first.grad, rtol=1e-4, atol=1e-6, msg=name)
    for name, value in statistics(plain).items():
        torch.testing.assert_close(frugal.state_dict()[name], value, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(objective(frugal.eval()), objective(plain.eval()))


@EVERY
def test_freezing_by_stages(family):
    frozen_shares = []
    for freeze_at in range(6):
        backbone = build(family, "MODEL.BACKBONE.FREEZE_AT", freeze_at).train()
        trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        frozen_shares.append(1 - len(trainable) / len(built(family).state_dict()))
        if freeze_at == 2:
            before = statistics(backbone)
            objective(backbone).backward()
            for name, parameter in backbone.named_parameters():
                assert (parameter.grad is not None) == (name in trainable), name
            for name, value in statistics(backbone).items():
                learns = name.rpartition(".")[0] + ".weight" in trainable
                assert torch.equal(value, before[name]) != learns, name
    assert frozen_shares == sorted(set(frozen_shares)), "each stage freezes more"
    assert all(name.startswith(ADDED) for name in trainable), "5 freezes all that is pretrained"


@EVERY
def test_freezing_everything(family):
    backbone = build(family, "MODEL.BACKBONE.FREEZE", True)
    with torch.no_grad():
        expected = objective(backbone.eval())
        before = statistics(backbone)
        found = objective(backbone.train())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for name, value in statistics(backbone).items():
        assert torch.equal(value, before[name]), name


def test_a_stage_too_many_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.FREEZE_AT: expected 0 .* to 5 .*found 6"):
        build("mit", "MODEL.BACKBONE.FREEZE_AT", 6)


def test_levels_that_nobody_asked_for_have_no_parameters():
    names = {name.split(".")[0] for name, _ in built("vit-patch14").named_parameters()}
    assert names == {"simfp_2", "simfp_4", "net"}


def test_patches_of_14_pixels_lie_at_every_16th_pixel():
    net = built("vit-patch14").net
    seen = []
    handle = net.vit.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        for row, column in ((0, 0), (1, 4), (3, 5)):
            dark, lit = torch.zeros(2, 1, 3, 64, 96)
            lit[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1
            seen.clear()
            with torch.no_grad():
                net(dark), net(lit)
            response = (seen[1] - seen[0]).abs().reshape(4, 6, -1).sum(-1)
            assert response.argmax() == row * 6 + column
            # Interpolation spills over to the neighbours by a fraction of a pixel, and no further.
            response[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
            assert not response.any()
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "family, overrides, message",
    [
        ("resnet18", ["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"],
         r"MODEL\.RESNETS\.DEPTH: .* has 50, 101, 152, found 18 \(dilated .*build_timm_backbone"),
        ("resnet18", ["MODEL.RESNETS.RES2_OUT_CHANNELS", 256], r"RES2_OUT_CHANNELS: ResNet-18 has 64"),
        ("resnet50", ["MODEL.RESNETS.RES4_DILATION", 2], r"RES4_DILATION .* needs build_resnet_deeplab"),
        ("mit", ["MODEL.MIT.NAME", "mit_b6"], r"MODEL\.MIT\.NAME: expected one of mit_b0, .*'mit_b6'"),
        ("swin", ["MODEL.TIMM.OUTPUT_NORM", "BN"], r'MODEL\.TIMM\.OUTPUT_NORM: expected "auto", "LN"'),
        ("efficientnet", ["MODEL.TIMM.NAME", "tresnet_m", "MODEL.BACKBONE.FREEZE_AT", 1],
         r"MODEL\.BACKBONE\.FREEZE_AT: timm does not say where the stages of tresnet_m end"),
        ("resnet18", ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
                      "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
                      "MODEL.BACKBONE.GRADIENT_CHECKPOINTING", True],
         r"MODEL\.BACKBONE\.GRADIENT_CHECKPOINTING: FPN has no gradient checkpointing"),
        ("vit-patch16", ["MODEL.VIT.NAME", "vit_base_patch99"], r"MODEL\.VIT\.NAME: timm cannot build"),
        ("vit-patch16", ["MODEL.VIT.NAME", "vit_base_patch8_224"], r"expected patches of 14 or 16 pixels"),
        ("vit-patch16", ["MODEL.VIT.OUT_FEATURES", ["p1"]], r"MODEL\.VIT\.OUT_FEATURES: expected some of p2"),
    ],
)  # fmt: skip
def test_wrong_keys_are_named(family, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(family, *overrides)
