"""Decoders against their formulas, written out in float64, and the contract that all of them keep."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab.semantic_seg import DeepLabV3PlusHead
from torch import nn
from torch.nn import functional as F

from gmm_anomaly.modeling.classifiers import RunningMeanPrototypes, build_classifier
from gmm_anomaly.modeling.decoders import (
    AuxiliaryHead,
    DeepLabV3PlusDecoder,
    OCRNetDecoder,
    PSPDecoder,
    SegFormerDecoder,
    SeparableDeepLabV3PlusDecoder,
    UPerNetDecoder,
    build_decoder,
    deeplabv3plus,
)
from gmm_anomaly.modeling.decoders.blocks import conv_norm_relu, convolve_parts
from gmm_anomaly.modeling.losses import pixel_cross_entropy
from gmm_anomaly.modeling.registry import DECODER_REGISTRY
from tests.oracles.layers import plain, pooled_pyramid, separable, up

CLASSES = 5
DECODERS = sorted(name for name, _ in DECODER_REGISTRY)
# Shapes of a backbone whose features are 7, 9, 11 and 13 channels wide.
SHAPES = {f"f{i}": ShapeSpec(channels=7 + 2 * i, stride=4 * 2**i) for i in range(4)}


TINY = ["MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.GMM.NUM_COMPONENTS", 2, "MODEL.GMM.EMBED_DIM", 8,
        "MODEL.GMM.MEMORY_SIZE", 50, "MODEL.GMM.WARM_START_FEATURES", 2, "MODEL.DECODER.CHANNELS", 12,
        "MODEL.DECODER.AUX_CHANNELS", 8, "MODEL.DECODER.AUX_FEATURE", "f2",
        "MODEL.DECODER.ASPP_DILATIONS", [1, 2, 3]]  # fmt: skip


@pytest.fixture(scope="module")
def build(config):
    """``build(name, *overrides)``: a decoder by config on SHAPES."""

    def make(name, *overrides, shapes=SHAPES):
        return build_decoder(config(*TINY, "MODEL.DECODER.NAME", name, *overrides), shapes)

    return make


def pyramid(batch=2, size=(50, 73), shapes=SHAPES, dtype=torch.float32):
    """Random features of an image that no stride divides."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(
            batch, shape.channels, *(-(-side // shape.stride) for side in size), generator=generator
        ).to(dtype)
        for name, shape in shapes.items()
    }


def randomise(module):
    """Norms that do something: random statistics and affine parameters."""
    generator = torch.Generator().manual_seed(2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.double().eval()


def named(*indices):
    return {f"f{i}": SHAPES[f"f{i}"] for i in indices}


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel_size, norm", [(1, "BN"), (3, "BN"), (1, ""), (3, "")])
def test_convolution_of_parts_is_that_of_their_concatenation(kernel_size, norm):
    layer = randomise(conv_norm_relu(9, 4, kernel_size, norm))
    assert (layer.bias is None) == bool(norm)
    if not norm:
        nn.init.normal_(layer.bias)
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, (9, 7)), (3, (4, 5)), (4, (1, 1))]
    parts = [torch.randn(2, n, *size, generator=generator).double() for n, size in sizes]
    whole = torch.cat([up(part, (9, 7)) for part in parts], 1)
    equal(convolve_parts(layer, iter(parts), (9, 7)), plain(layer, whole))


def test_psp_is_its_averages():
    decoder = randomise(PSPDecoder(named(3), channels=6))
    for size in ((11, 5), (1, 1)):
        x = torch.randn(2, SHAPES["f3"].channels, *size, generator=torch.Generator().manual_seed(4)).double()
        equal(decoder({"f3": x}).features, pooled_pyramid(decoder.pyramid, x))


def test_segformer_fuses_upsampled_projections():
    decoder = randomise(SegFormerDecoder(SHAPES, channels=6))
    features = pyramid(dtype=torch.float64)
    size = features["f0"].shape[-2:]
    parts = [up(plain(layer, x), size) for layer, x in zip(decoder.project, features.values(), strict=True)]
    equal(decoder(features).features, plain(decoder.fuse, torch.cat(parts, 1)))


def test_upernet_is_a_feature_pyramid_below_pyramid_pooling():
    decoder = randomise(UPerNetDecoder(SHAPES, channels=6))
    features = pyramid(dtype=torch.float64)
    x0, x1, x2, x3 = features.values()
    top = pooled_pyramid(decoder.pyramid, x3)
    level2 = plain(decoder.lateral[2], x2) + up(top, x2.shape[-2:])
    level1 = plain(decoder.lateral[1], x1) + up(level2, x1.shape[-2:])
    level0 = plain(decoder.lateral[0], x0) + up(level1, x0.shape[-2:])
    levels = [plain(s, x) for s, x in zip(decoder.smooth, (level0, level1, level2), strict=True)]
    whole = torch.cat([up(level, x0.shape[-2:]) for level in (*levels, top)], 1)
    equal(decoder(features).features, plain(decoder.fuse, whole))


def test_separable_deeplab_is_its_formula():
    decoder = randomise(SeparableDeepLabV3PlusDecoder(named(0, 3), dilations=(1, 2, 3), channels=6))
    features = pyramid(dtype=torch.float64)
    low, high = features["f0"], features["f3"]
    pooled = plain(decoder.image_pool.conv, high.mean((-2, -1), keepdim=True))
    pooled = pooled.expand(-1, -1, *high.shape[-2:])
    branches = [separable(branch, high) for branch in list(decoder.branches)[1:]]
    context = plain(decoder.bottleneck, torch.cat([pooled, plain(decoder.branches[0], high), *branches], 1))
    assert [branch.depthwise.dilation for branch in list(decoder.branches)[1:]] == [(1, 1), (2, 2), (3, 3)]
    fused = torch.cat([up(context, low.shape[-2:]), plain(decoder.project, low)], 1)
    for layer in decoder.refine:
        fused = separable(layer, fused)
    equal(decoder(features).features, fused)


def test_deeplab_is_detectron2s_head_with_separable_convolutions():
    decoder = randomise(DeepLabV3PlusDecoder(named(0, 1, 3), dilations=(1, 2, 3), channels=6))
    head = DeepLabV3PlusHead(
        named(0, 1, 3), project_channels=[48, 48], aspp_dilations=[1, 2, 3], aspp_dropout=0.1, norm="BN",
        decoder_channels=[6, 6, 6], common_stride=4, train_size=None, num_classes=CLASSES,
        use_depthwise_separable_conv=True,
    ).double().eval()  # fmt: skip
    missing, unexpected = head.load_state_dict(decoder.head.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("predictor") for name in missing)
    features = pyramid(dtype=torch.float64)
    equal(head.predictor(decoder(features).features), head.layers(features))


@pytest.mark.parametrize(
    "levels, auxiliary, kernel",
    [([3], ["f2"], (3, 3)), ([1, 2, 3], ["f1", "f2", "f3"], (1, 1))],
    ids=["one", "several"],
)
def test_ocrnet_attends_to_the_regions_of_its_auxiliary_head(levels, auxiliary, kernel):
    width = sum(SHAPES[name].channels for name in auxiliary)
    head = AuxiliaryHead(width, CLASSES, features=auxiliary, channels=6)
    assert head.conv.kernel_size == kernel
    nn.init.normal_(head.predictor.weight)
    decoder = randomise(OCRNetDecoder(named(*levels), auxiliary=head, channels=6, key_channels=4))
    features = pyramid(dtype=torch.float64)

    def together(names):
        return torch.cat([up(features[name], features[names[0]].shape[-2:]) for name in names], 1)

    attention, size = decoder.attention, features[decoder.in_features[0]].shape[-2:]
    logits = F.conv2d(plain(head.conv, together(auxiliary)), head.predictor.weight, head.predictor.bias)
    pixels = plain(decoder.bottleneck, together(decoder.in_features))
    weights = up(logits, size).flatten(2).softmax(2)
    regions = torch.einsum("bfn,bcn->bfc", pixels.flatten(2), weights)[..., None]
    query = plain(attention.query[1], plain(attention.query[0], pixels))
    key = plain(attention.key[1], plain(attention.key[0], regions))
    value = plain(attention.value, regions)
    context = torch.zeros_like(query)
    for image, row, column in itertools.product(range(2), range(size[0]), range(size[1])):
        dots = torch.stack([query[image, :, row, column] @ key[image, :, k, 0] for k in range(CLASSES)]) / 2
        share = dots.exp() / dots.exp().sum()
        context[image, :, row, column] = sum(share[k] * value[image, :, k, 0] for k in range(CLASSES))
    expected = plain(attention.fuse, torch.cat([plain(attention.out, context), pixels], 1))
    equal(decoder(features).features, expected)


@pytest.mark.parametrize("cosine, average", [(False, "valid"), (True, "all")])
def test_auxiliary_loss_is_the_weighted_cross_entropy_of_its_logits(cosine, average):
    options = {"channels": 6, "weight": 0.3, "cosine": cosine, "loss_average": average}
    head = AuxiliaryHead(SHAPES["f2"].channels, CLASSES, features=["f2"], **options)
    nn.init.normal_(head.predictor.weight)
    decoder = randomise(PSPDecoder(named(3), channels=6, auxiliary=head))
    features = pyramid(dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (2, 50, 73), generator=torch.Generator().manual_seed(6))
    labels[:, :20] = 255
    hidden = plain(head.conv, features["f2"])
    if cosine:
        weight = F.normalize(head.predictor.weight[:, :, 0, 0], dim=1)
        logits = 10 * torch.einsum("bfhw,cf->bchw", F.normalize(hidden, dim=1), weight)
    else:
        logits = F.conv2d(hidden, head.predictor.weight, head.predictor.bias)
    expected = 0.3 * pixel_cross_entropy(logits, labels, average=average)
    losses = decoder(features, labels).losses
    assert set(losses) == {"loss_aux"}
    torch.testing.assert_close(losses["loss_aux"], expected, rtol=1e-5, atol=1e-6)
    assert decoder(features).losses == {}


@pytest.mark.parametrize("name", DECODERS)
def test_auxiliary_head_computes_only_what_is_needed(build, name):
    decoder = build(name).eval()
    calls = []
    decoder.auxiliary.register_forward_hook(lambda *_: calls.append(1))
    decoder(pyramid())
    # OCRNet's regions come from it.
    assert bool(calls) == (name == "OCRNetDecoder")
    without = build(name, "MODEL.DECODER.AUX_FEATURE", "")
    if name != "OCRNetDecoder":
        assert without.auxiliary is None
        return
    assert without.auxiliary.features == ["f2"]
    several = build(name, "MODEL.DECODER.IN_FEATURES", ["f1", "f3"], "MODEL.DECODER.AUX_FEATURE", "")
    assert several.auxiliary.features == ["f1", "f3"] and several.out_stride == SHAPES["f1"].stride


# Every decoder, and every classifier.
@pytest.mark.parametrize(
    "name, classifier",
    list(zip(DECODERS, itertools.cycle(["gmm", "softmax", "prototype", "running prototype"]))),
)
def test_decoders_work_with_classifiers(build, config, name, classifier):
    keys = ["MODEL.CLASSIFIER.NAME", classifier.removeprefix("running "),
            "MODEL.PROTOTYPE.MOMENTUM", 0.99 if classifier.startswith("running") else 0.0]  # fmt: skip
    decoder = build(name, *keys)
    head = build_classifier(config(*TINY, *keys), decoder.out_channels)
    cosine = type(decoder.auxiliary.predictor).__name__ == "CosinePrototypes"
    assert cosine == classifier.endswith("prototype")
    model = nn.ModuleList([decoder, head])
    features = pyramid()
    labels = torch.randint(0, CLASSES, (2, 50, 73), generator=torch.Generator().manual_seed(7))
    if isinstance(getattr(head, "predictor", None), RunningMeanPrototypes):
        head.predictor.record(decoder(features).features, labels)
        head.predictor.update()
    decoded = decoder(features, labels)
    losses = head.losses(decoded.features, labels) | decoded.losses
    own = {"loss_contrast", "loss_guide"} if classifier == "gmm" else set()
    assert set(losses) == {"loss_ce", "loss_aux"} | own
    sum(losses.values()).backward()
    unused = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused, "an unused parameter breaks data parallelism"
    if classifier == "gmm":
        head.bank.fitted.fill_(True)
    model.eval()
    with torch.no_grad():
        decoded = decoder(features)
        logits = head(decoded.features).logits
    finest = max(x.shape[-2:] for x in (features[key] for key in decoder.in_features))
    assert decoded.features.shape == (2, decoder.out_channels, *finest), "of an image that no stride divides"
    assert decoder.out_stride == min(SHAPES[key].stride for key in decoder.in_features)
    assert logits.shape == (2, CLASSES, *finest) and logits.isfinite().all()


# Both norms that take one image, on every decoder one of them.
@pytest.mark.parametrize("name, norm", list(zip(DECODERS, itertools.cycle(["GN", ""]))))
def test_one_image_trains_without_batch_norm_under_autocast(build, name, norm, monkeypatch):
    # Detectron2's GN has 32 groups, of two channels here.
    monkeypatch.setattr(deeplabv3plus, "PROJECTED", 64)
    wide = ["MODEL.DECODER.CHANNELS", 64, "MODEL.DECODER.AUX_CHANNELS", 64, "MODEL.DECODER.NORM", norm]
    shapes = {key: ShapeSpec(channels=64, stride=shape.stride) for key, shape in SHAPES.items()}
    decoder = build(name, *wide, shapes=shapes)
    features = pyramid(batch=1, size=(33, 20), shapes=shapes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = decoder(features, torch.zeros(1, 33, 20, dtype=torch.int64))
    assert decoded.losses["loss_aux"].dtype == torch.float32
    (decoded.features.float().mean() + decoded.losses["loss_aux"]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_decoders_choose_their_features(build):
    for name, default, given, order in (
        ("DeepLabV3PlusDecoder", ["f0", "f3"], ["f3", "f0", "f1"], ["f0", "f1", "f3"]),
        ("SeparableDeepLabV3PlusDecoder", ["f0", "f3"], ["f2", "f1"], ["f1", "f2"]),
        ("SegFormerDecoder", ["f0", "f1", "f2", "f3"], ["f2", "f1"], ["f1", "f2"]),
        ("UPerNetDecoder", ["f0", "f1", "f2", "f3"], ["f2", "f1"], ["f1", "f2"]),
        ("OCRNetDecoder", ["f3"], ["f2", "f1"], ["f1", "f2"]),
        ("PSPDecoder", ["f3"], ["f2"], ["f2"]),
    ):
        assert build(name).in_features == default
        assert build(name, "MODEL.DECODER.IN_FEATURES", given).in_features == order


def test_wrong_keys_are_named(build):
    for name, key, value, message in (
        ("PSPDecoder", "IN_FEATURES", ["f2", "f3"], "expected exactly 1 of"),
        ("UPerNetDecoder", "IN_FEATURES", ["f3"], "expected at least 2 of"),
        ("SegFormerDecoder", "IN_FEATURES", ["res2"], r".*f0, f1.*found \['res2'\]"),
        ("PSPDecoder", "AUX_FEATURE", "res4", "expected one of .*found 'res4'"),
    ):
        with pytest.raises(ValueError, match=rf"MODEL\.DECODER\.{key}: {message}"):
            build(name, f"MODEL.DECODER.{key}", value)
    with pytest.raises(ValueError, match=r"MODEL\.DECODER\.NORM: .*SOLVER\.IMS_PER_BATCH"):
        build("PSPDecoder")(pyramid(batch=1))
