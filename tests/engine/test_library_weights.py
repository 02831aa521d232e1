"""MODEL.WEIGHTS by a library's name, or as a file of it: the network computes what the library's does, or the
weights are refused."""

from __future__ import annotations

import logging
import pickle
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine.checkpoint import Checkpointer

RGB = ["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NAME", "softmax", "MODEL.CLASSIFIER.NUM_CLASSES", 3,
         "MODEL.DECODER.NAME", "SegFormerDecoder", "MODEL.DECODER.CHANNELS", 8, *RGB]  # fmt: skip
RESNET = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.NORM", "BN",
          "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.DEPTH"]  # fmt: skip
SMALL_RESNET = [*RESNET, 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
VIT = ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.OUT_CHANNELS", 8, "MODEL.VIT.NAME"]


def segmentor(*overrides):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list([*SMALL, *overrides])
    torch.manual_seed(0)
    return build_model(cfg).eval()


def shaken(network):
    """Lively norms and biases, which start as ones and zeros and hide mistakes."""
    torch.manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(0.9 + 0.2 * torch.rand_like(tensor)).add_(0.01 * torch.rand_like(tensor))
    return network.eval()


@pytest.fixture(scope="module")
def resnet18():
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


def stages(network, image):
    """Outputs of the four stages of torchvision's (and timm's) ResNets."""
    seen = []
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    handles = [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in layers]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return seen


def assert_same_features(model, network):
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = model.backbone(image)
    for found, expected in zip(features.values(), stages(network, image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_torchvision_resnet50_by_name_and_tag(torchvision_gives, caplog):
    network = shaken(torchvision.models.resnet50())
    asked = torchvision_gives({"resnet50": network})
    model = segmentor(*RESNET, 50)
    with caplog.at_level(logging.WARNING):
        assert Checkpointer(model).load("torchvision:resnet50.IMAGENET1K_V1", checkpointables=[]) == {}
    assert not caplog.records
    assert_same_features(model, network)
    Checkpointer(segmentor(*RESNET, 50)).load("torchvision:resnet50")
    weights = torchvision.models.ResNet50_Weights
    assert asked == [weights.IMAGENET1K_V1.url, weights.DEFAULT.url]


@pytest.mark.parametrize("family", [SMALL_RESNET, [*TIMM, "resnet18"]])
def test_timm_resnet_into_either_resnet(timm_gives, family):
    network = shaken(timm.create_model("resnet18"))
    asked = timm_gives(network)
    model = segmentor(*family)
    Checkpointer(model).load("timm:resnet18.a1_in1k")
    assert asked == ["timm/resnet18.a1_in1k"]
    assert_same_features(model, network)


def test_timm_deep_stem_into_detectron2s(timm_gives):
    network = shaken(timm.create_model("resnet50c"))
    timm_gives(network)
    model = segmentor(*RESNET, 50, "MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone",
                      "MODEL.RESNETS.STEM_TYPE", "deeplab")  # fmt: skip
    Checkpointer(model).load("timm:resnet50c")
    assert_same_features(model, network)


def test_timm_vit_into_the_transformer_under_the_pyramid(timm_gives):
    network = shaken(timm.create_model("vit_tiny_patch16_224"))
    timm_gives(network)
    model = segmentor(*VIT, "vit_tiny_patch16_224")
    Checkpointer(model).load("timm:vit_tiny_patch16_224")
    expected = network.state_dict()
    for name, value in model.backbone.net.vit.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_files_of_a_backbone_load_as_they_are(resnet18, tmp_path):
    plain, wrapped = tmp_path / "plain.pth", tmp_path / "wrapped.pth"
    torch.save(resnet18.state_dict(), plain)
    parallel = {f"module.{name}": value for name, value in resnet18.state_dict().items()}
    torch.save({"state_dict": parallel, "epoch": 3}, wrapped)
    for file in (plain, wrapped):
        model = segmentor(*SMALL_RESNET)
        Checkpointer(model).load(str(file))
        assert_same_features(model, resnet18)


def test_own_checkpoints_load_with_their_prefix_and_wrapper(tmp_path):
    model, other = segmentor(*SMALL_RESNET), shaken(segmentor(*SMALL_RESNET))
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "own.pth"
    )
    Checkpointer(model).load(str(tmp_path / "own.pth"))
    for (name, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def detectron2_pickle(network, path):
    """What Detectron2's conversion of torchvision's files writes: names res2 to res5, to be matched."""
    state = {}
    for name, value in network.state_dict().items():
        for old, new in [
            *((f"layer{i}", f"res{i + 1}") for i in (1, 2, 3, 4)),
            ("downsample.0", "shortcut"),
            ("downsample.1", "shortcut.norm"),
            *((f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)),
        ]:
            name = name.replace(old, new)
        state[name if name.startswith("res") else f"stem.{name}"] = value.numpy()
    path.write_bytes(pickle.dumps({"model": state, "__author__": "torchvision", "matching_heuristics": True}))
    return str(path)


def test_detectron2_pickles_fill_the_backbone_or_are_refused(resnet18, tmp_path):
    path = detectron2_pickle(resnet18, tmp_path / "R-18.pkl")
    model = segmentor(*SMALL_RESNET)
    Checkpointer(model).load(path)
    assert_same_features(model, resnet18)
    # Every block of ResNet-18 has its place in ResNet-34, whose other blocks would stay random.
    with pytest.raises(
        ValueError, match=r"R-18\.pkl leaves \d+ tensors of the backbone unfilled \(backbone\."
    ):
        Checkpointer(segmentor(*RESNET, 34, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)).load(path)


def mmsegmentation(state):
    heads = {"decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)}
    return {f"backbone.{name}": value for name, value in state.items()} | heads


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: {k: v for k, v in state.items() if k != "layer3.1.bn2.bias"},
         r"does not fit the ResNet of 2-2-2-2 blocks: missing .* 1 of .*res4\.1\.conv2\.norm\.bias.*"
         r"tools/convert_weights\.py"),
        (lambda state: state | {"layer3.2.conv1.weight": torch.zeros(1)}, r"1 of its tensors have no place"),
        (mmsegmentation, r"is a checkpoint of MMSegmentation; convert it with tools/convert_weights\.py"),
        (lambda state: {"a": torch.zeros(3)}, r"does not fit .*tools/convert_weights\.py"),
    ],
)  # fmt: skip
def test_files_that_would_fill_a_part_are_refused(resnet18, tmp_path, change, message):
    torch.save(change(resnet18.state_dict()), tmp_path / "file.pth")
    model = segmentor(*SMALL_RESNET)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"MODEL\.WEIGHTS: .*{message}"):
        Checkpointer(model).load(str(tmp_path / "file.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "family, weights, message",
    [
        ([*RESNET, 50], "torchvision:resnet18", r"torchvision:resnet18 does not fit the ResNet of 3-4-6-3"),
        (SMALL_RESNET, "torchvision:resnet19", r"torchvision has no network 'resnet19'.*list_models"),
        (SMALL_RESNET, "torchvision:resnet18.V9", r"has the weights IMAGENET1K_V1, found 'V9'"),
        (SMALL_RESNET, "timm:resnet18.v9", r"timm has no weights 'resnet18\.v9' .*list_pretrained"),
        (SMALL_RESNET, "timm:resnet19", r"timm has no weights 'resnet19' .*list_pretrained"),
        ([*RESNET, 50, "MODEL.RESNETS.STRIDE_IN_1X1", True], "torchvision:resnet18",
         r"set MODEL\.RESNETS\.STRIDE_IN_1X1 False"),
        (["MODEL.BACKBONE.NAME", "build_mit_backbone"], "torchvision:resnet18",
         r"does not fit the Mix Transformer"),
    ],
)  # fmt: skip
def test_names_that_cannot_work(torchvision_gives, resnet18, family, weights, message):
    torchvision_gives({"resnet18": resnet18})
    with pytest.raises(ValueError, match=rf"MODEL\.WEIGHTS: .*{message}"):
        Checkpointer(segmentor(*family)).load(weights)


def test_without_a_network_the_message_says_what_to_bring(monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", unreachable)
    model = segmentor(*SMALL_RESNET)
    with pytest.raises(OSError, match=r"no route to host.*get https://.*resnet18.*\.pth .*as MODEL\.WEIGHTS"):
        Checkpointer(model).load("torchvision:resnet18")
    with pytest.raises(OSError, match=r"no route.*https://huggingface\.co/timm/resnet18\.a1_in1k.*WEIGHTS"):
        Checkpointer(model).load("timm:resnet18")


def test_another_normalisation_is_warned_of(torchvision_gives, resnet18, caplog):
    torchvision_gives({"resnet18": resnet18})
    bgr = ["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]]
    with caplog.at_level(logging.WARNING):
        Checkpointer(segmentor(*SMALL_RESNET, *bgr)).load("torchvision:resnet18")
    said = [record.getMessage().split(" is ")[0] for record in caplog.records]
    assert said == ["MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]


def test_a_name_is_no_trained_model():
    with pytest.raises(ValueError, match="expected a trained model, found a backbone's: timm:resnet18"):
        Checkpointer(segmentor(*SMALL_RESNET)).load_for_evaluation("timm:resnet18")
