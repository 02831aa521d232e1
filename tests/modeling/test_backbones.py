"""What every backbone of the registry holds to: shapes, odd sizes, memory format, checkpointing, freezing."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.structures import ImageList

from gmm_anomaly.modeling import build_backbone
from gmm_anomaly.modeling.backbones.mit import MIT_SHAPES, MitShape, MixTransformer
from gmm_anomaly.modeling.backbones.weight_names import mit_names

NARROW = ["MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
          "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8]  # fmt: skip
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
FOUR = ["MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]]
VIT = ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.OUT_CHANNELS", 16, "MODEL.VIT.NAME"]
# Overrides, strides of the outputs.
FAMILIES = {
    "resnet50": (["MODEL.BACKBONE.NAME", "build_resnet_backbone", *NARROW], [4, 8, 16, 32]),
    "resnet50-stride8": (["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", *NARROW,
                          "MODEL.RESNETS.RES4_DILATION", 2, "MODEL.RESNETS.RES5_DILATION", 4,
                          "MODEL.RESNETS.STEM_TYPE", "deeplab"], [4, 8, 8, 8]),
    "timm-resnet-stride8": ([*TIMM, "resnet_test", "MODEL.TIMM.OUTPUT_STRIDE", 8], [4, 8, 8, 8]),
    "efficientnet": ([*TIMM, "test_efficientnet"], [4, 8, 16, 32]),
    "convnext": ([*TIMM, "convnext_test", *FOUR], [4, 8, 16, 32]),
    "hrnet": ([*TIMM, "hrnet_w18_small"], [4, 8, 16, 32]),
    "swin": ([*TIMM, "swin_test", *FOUR], [4, 8, 16, 32]),
    "mit": (["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.NAME", "mit_b0"], [4, 8, 16, 32]),
    "vit-patch16": ([*VIT, "test_vit"], [4, 8, 16, 32]),
    "vit-patch14": ([*VIT, "vit_test_dinov2", "MODEL.DECODER.IN_FEATURES", ["p2", "p4"]], [4, 16]),
}  # fmt: skip
# What freezing the pretrained network leaves trainable.
ADDED = ("output_norms.", "simfp_")
IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def build(config):
    def make(family, *more):
        torch.manual_seed(0)
        return build_backbone(config(*FAMILIES[family][0], *more))

    return make


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def built(build, family, shaken):
    """A backbone with lively norms; tests that change it take a copy."""
    return shaken(build(family))


def objective(backbone):
    """A number that depends on every feature, differently on each of its entries."""
    torch.manual_seed(2)  # stochastic depth
    features = backbone(IMAGE).values()
    generator = torch.Generator().manual_seed(3)
    return sum((torch.randn(f.shape, generator=generator) * f).mean() for f in features)


def statistics(backbone):
    return {name: value.clone() for name, value in backbone.named_buffers() if "running_" in name}


def test_all_of_the_projects_backbones_are_held_to_this():
    own = {name for name, builder in BACKBONE_REGISTRY if builder.__module__.startswith("gmm_anomaly")}
    overrides = [overrides for overrides, _ in FAMILIES.values()]
    assert own and own <= {value[value.index("MODEL.BACKBONE.NAME") + 1] for value in overrides}


def test_output_shape_is_true_at_every_size(built, family):
    shapes = built.output_shape()
    assert [shape.stride for shape in shapes.values()] == FAMILIES[family][1]
    for size in ((64, 96), (65, 83)):
        images = torch.nn.functional.interpolate(IMAGE, size=size)
        padded = ImageList.from_tensors(list(images), built.size_divisibility).tensor
        extra = [after - before for after, before in zip(padded.shape[-2:], size, strict=True)]
        assert max(extra) < max(built.size_divisibility, 1)
        with torch.no_grad():
            features = built(padded)
        assert list(features) == list(shapes)
        for name, shape in shapes.items():
            # What fills no patch or window of a stride is left out.
            up = 0 if family in ("convnext", "vit-patch16") else shape.stride - 1
            height, width = ((length + up) // shape.stride for length in padded.shape[-2:])
            assert features[name].shape == (1, shape.channels, height, width), (name, size)


def test_gradient_checkpointing_changes_nothing_but_the_memory(build, built, family):
    plain = copy.deepcopy(built).train()
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


def test_freezing_by_stages(build, family):
    frozen = []
    for freeze_at in range(6):
        backbone = build(family, "MODEL.BACKBONE.FREEZE_AT", freeze_at).train()
        trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        frozen.append(-len(trainable))
        if freeze_at in (2, 5):
            before = statistics(backbone)
            loss = objective(backbone)
            if loss.requires_grad:
                loss.backward()
            for name, parameter in backbone.named_parameters():
                assert (parameter.grad is not None) == (name in trainable), name
            for name, value in statistics(backbone).items():
                learns = name.rpartition(".")[0] + ".weight" in trainable
                assert torch.equal(value, before[name]) != learns, name
    assert frozen == sorted(set(frozen)), "each stage freezes more"
    assert all(name.startswith(ADDED) for name in trainable), "5 freezes all that is pretrained"
    with torch.no_grad():
        # Stochastic depth too.
        torch.testing.assert_close(objective(backbone), objective(backbone.eval()), rtol=0, atol=0)


def test_the_last_stage_number_freezes_backbones_of_other_packages(build):
    pyramid = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.NORM", "BN",
               "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]  # fmt: skip
    backbone = build("resnet50", *pyramid, "MODEL.BACKBONE.FREEZE_AT", 5).train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    before = statistics(backbone)
    objective(backbone)
    assert all(torch.equal(value, before[name]) for name, value in statistics(backbone).items())


def test_levels_that_nobody_reads_have_no_parameters(build):
    more = ["MODEL.DECODER.AUX_FEATURE", "p3", "MODEL.FEATURE_DISTANCE.FEATURES", ["p3", "embedding"]]
    backbone = build("vit-patch14", *more)
    assert list(backbone.output_shape()) == ["p2", "p3", "p4"]
    names = {name.split(".")[0] for name, _ in backbone.named_parameters()}
    assert names == {"simfp_2", "simfp_3", "simfp_4", "net"}


def test_patches_of_14_pixels_lie_at_every_16th_pixel(build):
    net = build("vit-patch14").net.eval()
    seen = []
    net.vit.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(output))
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


def test_mit_agrees_with_transformers(shaken):
    transformers = pytest.importorskip("transformers")
    small = MitShape(channels=(8, 16, 40, 64), depths=(1, 2, 1, 1))
    keys = {"hidden_sizes": list(small.channels), "depths": list(small.depths)}
    network = shaken(transformers.SegformerModel(transformers.SegformerConfig(**keys)))
    backbone = MixTransformer(small).eval()
    backbone.load_state_dict(mit_names(network.state_dict()))
    for size in ((64, 96), (75, 91)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = network(image, output_hidden_states=True).hidden_states
            features = backbone(image)
        for found, feature in zip(features.values(), expected, strict=True):
            torch.testing.assert_close(found, feature, rtol=1e-4, atol=1e-4)


def test_swin_agrees_with_transformers(build, shaken):
    """At an odd size that fills neither patches nor windows."""
    transformers = pytest.importorskip("transformers")
    shape = {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 4], "window_size": 7}
    stages = [f"stage{index}" for index in range(1, 5)]
    network = shaken(transformers.SwinBackbone(transformers.SwinConfig(**shape, out_features=stages)))
    state = {}
    for name, value in network.state_dict().items():
        for theirs, ours in (
            (r"hidden_states_norms.stage(\d)", lambda m: f"output_norms.level{int(m[1]) - 1}"),
            (r"swin.embeddings.patch_embeddings.projection", "model.patch_embed.proj"),
            (r"swin.embeddings.norm", "model.patch_embed.norm"),
            (r"swin.encoder.layers.(\d).downsample", lambda m: f"model.layers_{int(m[1]) + 1}.downsample"),
            (r"swin.encoder.layers.(\d)", r"model.layers_\1"),
            (r"attention.relative_position_bias.relative", "attn.relative"),
            (r"attention.o_proj", "attn.proj"), (r"attention.[qkv]_proj", "attn.qkv"),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
        ):  # fmt: skip
            name = re.sub(theirs, ours, name)
        state[name] = torch.cat([state[name], value]) if ".qkv." in name and name in state else value
    backbone = build("swin").eval()
    unknown = backbone.load_state_dict(state, strict=False)
    assert not unknown.missing_keys and {name[:14] for name in unknown.unexpected_keys} == {"swin.layernorm"}
    image = torch.randn(1, 3, 261, 275, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for found, feature in zip(backbone(image).values(), network(image).feature_maps, strict=True):
            torch.testing.assert_close(found, feature, rtol=1e-4, atol=1e-4)


def test_hrnet_adds_branches_as_mmsegmentation_does(build, shaken):
    module = shaken(build("hrnet")).model.stage3[0]
    generator = torch.Generator().manual_seed(5)
    sizes = ((17, 23), (9, 12), (5, 6))
    branches = [torch.randn(1, 16 << index, *size, generator=generator) for index, size in enumerate(sizes)]
    with torch.no_grad():
        found = module(list(branches))
        own = [branch(x) for branch, x in zip(module.branches, branches, strict=True)]
        for index, (fused, size) in enumerate(zip(found, sizes, strict=True)):
            expected = torch.zeros_like(own[index])
            for other, x in enumerate(own):
                fuse = module.fuse_layers[index][other]
                y = fuse[:2](x) if other > index else fuse(x)
                if other > index:
                    options = {"mode": "bilinear", "align_corners": False}
                    y = torch.nn.functional.interpolate(y, scale_factor=2 ** (other - index), **options)
                    y = torch.nn.functional.interpolate(y, size, **options)
                expected += y
            torch.testing.assert_close(fused, expected.relu(), rtol=1e-4, atol=1e-4)


def test_mit_sizes():
    # Encoder parameters in millions, table 1 of the paper.
    for name, millions in {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}.items():
        with torch.device("meta"):
            parameters = MixTransformer(MIT_SHAPES[f"mit_{name}"]).parameters()
        assert sum(one.numel() for one in parameters) / 1e6 == pytest.approx(millions, abs=0.1), name


def test_stochastic_depth_is_the_keys_or_the_models_own(build):
    def last_rate(backbone):
        return max(getattr(module, "drop_prob", None) or 0.0 for module in backbone.modules())

    for family, own in (("swin", 0.1), ("mit", 0.1), ("vit-patch16", 0.0)):
        assert last_rate(build(family)) == pytest.approx(own)
        assert last_rate(build(family, "MODEL.BACKBONE.DROP_PATH", 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "family, overrides, message",
    [
        ("resnet50", ["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.RESNETS.DEPTH", 18],
         r"MODEL\.RESNETS\.DEPTH: .* has 50, 101, 152, found 18 \(dilated .*build_timm_backbone"),
        ("resnet50", ["MODEL.RESNETS.DEPTH", 18], r"RES2_OUT_CHANNELS: ResNet-18 has 64"),
        ("resnet50-stride8", ["MODEL.BACKBONE.NAME", "build_resnet_backbone"],
         r"RES4_DILATION .* needs build_resnet_deeplab"),
        ("mit", ["MODEL.MIT.NAME", "mit_b6"], r"MODEL\.MIT\.NAME: expected one of mit_b0, .*'mit_b6'"),
        ("efficientnet", ["MODEL.TIMM.NAME", "tresnet_m", "MODEL.BACKBONE.FREEZE_AT", 1],
         r"MODEL\.BACKBONE\.FREEZE_AT: timm does not say where the stages of tresnet_m end"),
        ("resnet50", ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
                      "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
                      "MODEL.BACKBONE.GRADIENT_CHECKPOINTING", True],
         r"MODEL\.BACKBONE\.GRADIENT_CHECKPOINTING: FPN has no gradient checkpointing"),
        ("vit-patch16", ["MODEL.VIT.NAME", "vit_base_patch99"], r"MODEL\.VIT\.NAME: timm cannot build"),
        ("vit-patch16", ["MODEL.VIT.NAME", "vit_small_patch32_224"], r"expected patches of 14 or 16 pixels"),
    ],
)  # fmt: skip
def test_wrong_keys_are_named(build, family, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(family, *overrides)
