"""``MODEL.BACKBONE.WEIGHTS``: networks compute what the weights' own code does, or refuse them."""

from __future__ import annotations

import logging
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from detectron2.modeling.backbone.swin import SwinTransformer

from gmm_anomaly.modeling.backbones import build_backbone
from gmm_anomaly.modeling.backbones.weight_names import mit_names
from gmm_anomaly.modeling.backbones.weights import load_whole, tensors_of
from tests.oracles.mmsegmentation import mm_mit

RGB = ["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]
MIT = ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.NAME"]
RESNET = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.NORM", "BN",
          "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.DEPTH"]  # fmt: skip
RESNET18 = [*RESNET, 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
SWIN = [*TIMM, "swin_test", "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]]
VIT = ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.OUT_CHANNELS", 8, "MODEL.VIT.NAME"]
KEY = r"MODEL\.BACKBONE\.WEIGHTS: "


@pytest.fixture(scope="module")
def build(config):
    def make(weights, *overrides):
        torch.manual_seed(0)
        return build_backbone(config(*RGB, *overrides, "MODEL.BACKBONE.WEIGHTS", str(weights))).eval()

    return make


@pytest.fixture
def saved(tmp_path):
    def save(state):
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


@pytest.fixture(scope="module")
def resnet18(shaken):
    return shaken(torchvision.models.resnet18())


@pytest.fixture
def torchvision_gives(monkeypatch):
    """Networks whose weights torchvision "downloads", by the beginning of the file's name."""
    asked = []

    def answer(networks):
        def download(url, *args, **kwargs):
            asked.append(url)
            return networks[url.rpartition("/")[2].partition("-")[0]].state_dict()

        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
        return asked

    return answer


@pytest.fixture
def timm_gives(monkeypatch):
    asked = []

    def answer(network):
        def download(hub_id, *args, **kwargs):
            asked.append(hub_id)
            return network.state_dict()

        monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", download)
        return asked

    return answer


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same_features(backbone, network):
    """A backbone gives the outputs of the four stages of torchvision's or timm's ResNet."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    seen = []
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    handles = [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in layers]
    with torch.no_grad():
        network(image)
        features = backbone(image)
    for handle in handles:
        handle.remove()
    for found, expected in zip(features.values(), seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_mit_loads_what_transformers_downloads_and_its_files(build, shaken, tmp_path, monkeypatch):
    """Into the real network, from a repository with the classification checkpoint that the hub has."""
    transformers = pytest.importorskip("transformers")
    published = shaken(transformers.SegformerForImageClassification(transformers.SegformerConfig()))
    published.save_pretrained(tmp_path)
    found_at = {"nvidia/mit-b0": tmp_path, "nvidia/mit-b1": tmp_path}
    real = transformers.SegformerModel.from_pretrained

    def from_hub(name, **options):
        return real(found_at[name], **options)

    monkeypatch.setattr(transformers.SegformerModel, "from_pretrained", from_hub)
    expected = mit_names(published.segformer.state_dict())
    # Files keep the names of transformers 4, as the released ones do.
    for weights in ("hub", tmp_path / "model.safetensors"):
        assert equal(build(weights, *MIT, "mit_b0").state_dict(), expected)
    with pytest.raises(ValueError, match=KEY + "transformers:nvidia/mit-b1 does not fit mit_b1"):
        build("hub", *MIT, "mit_b1")
    with pytest.raises(OSError, match=KEY + r"transformers:.*could not be downloaded \(KeyError.*mit-b2"):
        build("hub", *MIT, "mit_b2")


def test_mit_reads_official_and_mmsegmentation_files(build, shaken, saved, caplog):
    state = shaken(build("", *MIT, "mit_b0")).state_dict()
    classifier = {"head.weight": torch.zeros(10, 256), "head.bias": torch.zeros(10)}
    segmentor = {f"backbone.{name}": value for name, value in mm_mit(state).items()}
    segmentor["decode_head.conv_seg.weight"] = torch.zeros(19, 64, 1, 1)
    for file in (state | classifier, {"state_dict": segmentor, "meta": {"epoch": 1}}):
        with caplog.at_level(logging.INFO):
            assert equal(build(saved(file), *MIT, "mit_b0").state_dict(), state)
    assert "not used: head.weight, head.bias" in caplog.text


@pytest.fixture(scope="module")
def official_swin(shaken):
    # Swin's object detection code, as Detectron2 republishes it: the official names, a norm on each output.
    return shaken(SwinTransformer(embed_dim=12, depths=[2, 2, 2, 2], num_heads=[1, 2, 3, 4]))


def test_swin_agrees_with_the_official_segmentation_code(build, official_swin, saved):
    state = official_swin.state_dict()
    assert "layers.0.blocks.1.attn.relative_position_index" in state
    # ImageNet files hold the masks of 224 pixels.
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    file = saved({"model": state | {"head.weight": torch.zeros(10, 96), "head.bias": torch.zeros(10)}})
    backbone = build(file, *SWIN)
    # No multiples of the windows of 7 patches of 4 pixels, at any level.
    for size in ((64, 96), (224, 256)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, found = official_swin(image), backbone(image)
        for feature, reference in zip(found.values(), expected.values(), strict=True):
            torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)


def test_incomplete_and_larger_files_are_refused(build, official_swin, saved):
    state = official_swin.state_dict()
    short = {name: value for name, value in state.items() if name != "layers.2.blocks.1.mlp.fc1.bias"}
    deeper = state | {"layers.2.blocks.6.norm1.weight": torch.zeros(48)}
    for file, message in (
        (short, r".* 1 of \d+ tensors"),
        (deeper, "1 of its tensors have no place .*larger"),
    ):
        with pytest.raises(ValueError, match=rf"{KEY}.* does not fit swin_test: {message}"):
            build(saved({"model": file}), *SWIN)


def test_vit_reads_official_dinov2_files(build, saved):
    own = build("", *VIT, "vit_test_dinov2").net.vit.state_dict()
    state = {key: value.clone() for key, value in own.items()}
    # A file for 224 pixels: 16 x 16 position embeddings instead of 37 x 37, here a ramp from left to right.
    ramp = torch.linspace(0, 1, 16).expand(16, 16).reshape(1, 256, 1).expand(-1, -1, 24)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 24), 7.0), ramp], dim=1)
    state["mask_token"] = torch.zeros(1, 24)
    vit = build(saved(state), *VIT, "vit_test_dinov2").net.vit
    for key, value in vit.state_dict().items():
        assert key == "pos_embed" or torch.equal(value, state[key]), key
    assert vit.pos_embed.shape == (1, 1 + 37 * 37, 24)
    torch.testing.assert_close(vit.pos_embed[0, 0], torch.full((24,), 7.0))
    grid = vit.pos_embed[0, 1:].reshape(37, 37, 24)
    torch.testing.assert_close(grid, grid[:1, :, :1].expand_as(grid), rtol=1e-4, atol=1e-4)
    # Bicubic interpolation keeps a ramp a ramp away from the borders.
    inner = grid[0, 6:31, 0]
    torch.testing.assert_close(inner.diff(), torch.full((24,), 16 / 37 / 15), rtol=0.02, atol=0)


def test_torchvision_by_name_and_tag(build, resnet18, torchvision_gives, caplog):
    # A name with two tags; what is given instead is smaller.
    asked = torchvision_gives({"resnet50": resnet18})
    with caplog.at_level(logging.WARNING):
        for weights in ("torchvision:resnet50.IMAGENET1K_V1", "torchvision:resnet50"):
            assert_same_features(build(weights, *RESNET18), resnet18)
    assert not caplog.records
    weights = torchvision.models.ResNet50_Weights
    assert asked == [weights.IMAGENET1K_V1.url, weights.DEFAULT.url]


def test_timm_by_name_into_either_resnet(build, shaken, timm_gives):
    network = shaken(timm.create_model("resnet18"))
    asked = timm_gives(network)
    for weights, family in (("timm:resnet18.a1_in1k", RESNET18), ("hub", [*TIMM, "resnet18.a1_in1k"])):
        assert_same_features(build(weights, *family), network)
    assert asked == ["timm/resnet18.a1_in1k"] * 2


def test_bottlenecks_and_deep_stems_of_timm_in_detectron2s(build, shaken):
    deep = shaken(timm.create_model("resnet50c", channels=(4, 8, 16, 32)))
    narrow = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
              "MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.RESNETS.STEM_TYPE", "deeplab",
              "MODEL.RESNETS.STEM_OUT_CHANNELS", 64]  # fmt: skip
    backbone = build("", *RESNET, 50, *narrow)
    load_whole(backbone, deep.state_dict(), "timm")
    assert_same_features(backbone, deep)


def test_files_by_order_where_names_differ_and_files_of_packages(build, tmp_path, monkeypatch):
    state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    (tmp_path / "own_weights").mkdir()
    (tmp_path / "own_weights/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    other = {f"other_{index}": value for index, value in enumerate(state.values())}
    torch.save(other, tmp_path / "own_weights/w.pth")
    loaded = build("package:own_weights/w.pth", *TIMM, "test_efficientnet").model.state_dict()
    for key, value in loaded.items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, state[key]), key


def test_files_that_would_fill_a_part_load_nothing(build, resnet18):
    state = {name: value for name, value in resnet18.state_dict().items() if name != "layer3.1.bn2.bias"}
    backbone = build("", *RESNET18)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    message = r"does not fit the ResNet of 2-2-2-2 blocks: missing .* 1 of .*res4\.1\.conv2\.norm\.bias"
    with pytest.raises(ValueError, match=KEY + f"file {message}"):
        load_whole(backbone, state, "file")
    assert equal(backbone.state_dict(), before)
    # Wrapped, and with the names of data parallelism, a whole one is read.
    parallel = {f"module.{name}": value for name, value in resnet18.state_dict().items()}
    load_whole(backbone, tensors_of({"state_dict": parallel, "epoch": 3}, "file"), "file")
    assert_same_features(backbone, resnet18)


@pytest.mark.parametrize(
    "family, weights, message",
    [
        ([*RESNET, 50], "torchvision:resnet18", r"torchvision:resnet18 does not fit the ResNet of 3-4-6-3"),
        (RESNET18, "torchvision:resnet19", r"torchvision has no weights 'resnet19'.*list_models"),
        (RESNET18, "torchvision:resnet18.V9", r"no weights 'resnet18\.V9'.*get_model_weights"),
        (RESNET18, "timm:resnet19", r"timm has no weights 'resnet19' .*list_pretrained"),
        (RESNET18, "hub", r'there is no "hub" for build_resnet_backbone'),
        ([*RESNET, 50, "MODEL.RESNETS.STRIDE_IN_1X1", True], "torchvision:resnet18",
         r"set MODEL\.RESNETS\.STRIDE_IN_1X1 False"),
        ([*MIT, "mit_b0"], "torchvision:resnet18", r"does not fit mit_b0"),
    ],
)  # fmt: skip
def test_weights_that_cannot_work(build, torchvision_gives, resnet18, family, weights, message):
    torchvision_gives({"resnet18": resnet18})
    with pytest.raises(ValueError, match=KEY + f".*{message}"):
        build(weights, *family)


def test_files_that_are_not_there_or_hold_nothing_are_named(build, tmp_path):
    with pytest.raises(FileNotFoundError, match=KEY + r"no file .*missing\.pth"):
        build(tmp_path / "missing.pth", *RESNET18)
    with pytest.raises(FileNotFoundError, match=KEY + r".*no_such_package.*pip install no-such-package"):
        build("package:no_such_package/w.pth", *RESNET18)
    with pytest.raises(ValueError, match=KEY + "file holds no state dict"):
        tensors_of({"epoch": 3}, "file")


def test_without_a_network_the_message_says_what_to_bring(build, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", unreachable)
    with pytest.raises(OSError, match=KEY + r".*no route.*get https://.*resnet18.*\.pth .*as MODEL"):
        build("torchvision:resnet18", *RESNET18)
    with pytest.raises(OSError, match=KEY + r".*no route.*https://huggingface\.co/timm/resnet18\.a1_in1k"):
        build("hub", *TIMM, "resnet18")


def test_another_normalisation_is_warned_of(build, torchvision_gives, resnet18, caplog):
    torchvision_gives({"resnet18": resnet18})
    bgr = ["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]]
    with caplog.at_level(logging.WARNING):
        build("torchvision:resnet18", *RESNET18, *bgr)
    said = [record.getMessage().split(" is ")[0] for record in caplog.records]
    assert said == ["MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
