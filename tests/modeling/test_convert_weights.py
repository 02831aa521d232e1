"""Checkpoints with MMSegmentation's names, and backbones' own files, become this project's."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from gmm_anomaly.cli import main
from gmm_anomaly.engine import Checkpointer, build_config
from gmm_anomaly.modeling.backbones.weight_names import mmsegmentation_timm_names
from gmm_anomaly.modeling.backbones.weights import trust_pickles
from tests.oracles.mmsegmentation import mmsegmentation_state

CLASSES, COMPONENTS, DIM, SLOTS = 5, 2, 8, 6
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "DATASETS.TRAIN", ()),
    *("DATASETS.TEST", (), "MODEL.CLASSIFIER.NAME", "softmax", "TEST.SCORES", ["msp"]),
    *("MODEL.DECODER.CHANNELS", 16, "MODEL.DECODER.AUX_CHANNELS", 16),
    *("MODEL.GMM.NUM_COMPONENTS", COMPONENTS, "MODEL.GMM.EMBED_DIM", DIM, "MODEL.GMM.MEMORY_SIZE", SLOTS),
    *("MODEL.GMM.SAMPLES_PER_UPDATE", 3, "MODEL.GMM.PROJECTION", "released", "MODEL.GMM.WARM_START", False),
    *("MODEL.GMM.SAVE_MEMORY", False),
]
GMM = ["MODEL.CLASSIFIER.NAME", "gmm"]
# ResNetV1c, narrow.
DEEP_RESNET = [
    *("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.RESNETS.STEM_TYPE", "deeplab"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STRIDE_IN_1X1", False),
    *("MODEL.DECODER.AUX_FEATURE", "res4"),
]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
TIMM_RESNET = [*TIMM, "resnet_deep_test", "MODEL.DECODER.AUX_FEATURE", "level3"]
SWIN = [*TIMM, "swin_test", "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3], "MODEL.DECODER.AUX_FEATURE", "level2"]
MIT = ["MODEL.BACKBONE.NAME", "build_mit_backbone"]


def decoder(name):
    return ["MODEL.DECODER.NAME", f"{name}Decoder"]


# Backbone, decoder and classifier of each; a name and shape that MMSegmentation's model of that kind has.
MODELS = {
    "resnet-deeplabv3plus-softmax": (
        [*DEEP_RESNET, *decoder("SeparableDeepLabV3Plus")],
        {"backbone.stem.7.running_var": (16,), "backbone.layer3.5.bn3.weight": (128,),
         "backbone.layer1.0.downsample.0.weight": (32, 16, 1, 1), "auxiliary_head.conv_seg.bias": (CLASSES,),
         "decode_head.image_pool.1.conv.weight": (16, 256, 1, 1),
         "decode_head.aspp_modules.3.depthwise_conv.conv.weight": (256, 1, 3, 3),
         "decode_head.sep_bottleneck.1.pointwise_conv.bn.running_var": (16,)},
    ),
    "resnet-psp-softmax": (
        [*DEEP_RESNET, *decoder("PSP")],
        {"decode_head.psp_modules.3.1.conv.weight": (16, 256, 1, 1), "decode_head.bottleneck.bn.bias": (16,),
         "auxiliary_head.convs.0.bn.running_mean": (16,)},
    ),
    "timm-resnet-ocrnet-gmm": (
        [*TIMM_RESNET, *decoder("OCRNet"), *GMM],
        {"backbone.stem.6.weight": (64, 32, 3, 3), "backbone.layer4.0.conv3.weight": (128, 32, 1, 1),
         "decode_head.0.convs.0.conv.weight": (16, 64, 3, 3), "decode_head.1.means": (5, 2, 8),
         "decode_head.0.conv_seg.weight": (CLASSES, 16, 1, 1),
         "decode_head.1.object_context_block.query_project.1.bn.weight": (256,),
         "decode_head.1.object_context_block.bottleneck.conv.weight": (16, 32, 1, 1)},
    ),
    "swin-upernet-gmm": (
        [*SWIN, *decoder("UPerNet"), *GMM],
        {"backbone.stages.0.downsample.reduction.weight": (24, 48),
         "decode_head.fpn_convs.2.bn.weight": (16,),
         "backbone.stages.2.blocks.1.attn.w_msa.relative_position_bias_table": (169, 3),
         "backbone.stages.3.blocks.1.ffn.layers.0.0.weight": (384, 96), "backbone.norm3.weight": (96,),
         "decode_head.lateral_convs.0.conv.weight": (16, 12, 1, 1),
         "decode_head.fpn_bottleneck.conv.weight": (16, 64, 3, 3)},
    ),
    "mit-segformer-gmm": (
        [*MIT, *decoder("SegFormer"), *GMM],
        {"backbone.layers.0.1.1.attn.attn.in_proj_weight": (96, 32), "backbone.layers.0.2.weight": (32,),
         "backbone.layers.1.1.0.ffn.layers.4.weight": (64, 256, 1, 1),
         "decode_head.convs.3.conv.weight": (16, 256, 1, 1), "decode_head.mask_norm.weight": (CLASSES,),
         "decode_head.projection.conv.weight": (8, 16, 1, 1), "decode_head.diagonal": (5, 2, 8),
         "decode_head.queue": (10, 8, 6), "decode_head.queue_ptr": (10,)},
    ),
}  # fmt: skip


def config(overrides):
    return build_config("", [*TINY, *overrides])


def randomised(model):
    """Every tensor distinct, whatever it is initialised to."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            # Variances and standard deviations are positive.
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
    return model


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    cfg = config(MODELS[request.param][0])
    model = randomised(build_model(cfg)).eval()
    return request.param, cfg, model, mmsegmentation_state(request.param, model)


@pytest.fixture
def convert(tmp_path):
    """Runs the command on a config and a state dict: exit status, path of the output."""

    def run(cfg, state, *arguments, wrapper="state_dict"):
        (tmp_path / "config.yaml").write_text(cfg.dump())
        torch.save({wrapper: state, "meta": {"epoch": 3}} if wrapper else state, tmp_path / "theirs.pth")
        output = tmp_path / "ours.pth"
        files = [str(tmp_path / "theirs.pth"), str(output)]
        return main(["convert", "--config-file", str(tmp_path / "config.yaml"), *files, *arguments]), output

    return run


def test_round_trip_is_exact(case, convert, capsys):
    name, cfg, model, state = case
    assert {key: tuple(state[key].shape) for key in MODELS[name][1]} == MODELS[name][1], "the real names"
    status, output = convert(cfg, state)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "not filled" not in captured.out and "unused" not in captured.out
    other = build_model(cfg)
    Checkpointer(other).load_for_evaluation(str(output))
    expected = {key: value for key, value in model.state_dict().items() if ".bank." not in key}
    found = other.state_dict()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    if hasattr(model.classifier, "bank"):
        bank = other.classifier.bank
        assert torch.equal(bank.means, model.classifier.bank.means)
        assert torch.equal(bank.scales, model.classifier.bank.scales)
        assert bank.fitted.all() and bank.started.all()
        # What EM reads of the memory: the sums over the queue.
        head = "decode_head.1" if any(key.startswith("decode_head.1.") for key in state) else "decode_head"
        queue = state[f"{head}.queue"].double()
        assert (bank.memory.count == SLOTS).all()
        torch.testing.assert_close(bank.memory.total, queue.sum(2))
        torch.testing.assert_close(bank.memory.total_square, queue.square().sum(2))
        assert torch.equal(bank.memory.pointer, state[f"{head}.queue_ptr"])


def test_merged_patches_are_those_of_unfold():
    """MMSegmentation's PatchMerging (nn.Unfold, norm, linear) and the converted one of timm give the same."""
    merging = build_model(config([*SWIN, *decoder("UPerNet")])).backbone.model.layers_1.downsample
    generator = torch.Generator().manual_seed(3)
    weight, scale, shift = (torch.randn(shape, generator=generator) for shape in ((24, 48), (48,), (48,)))
    state = {"reduction.weight": weight, "norm.weight": scale, "norm.bias": shift}
    converted = mmsegmentation_timm_names({f"stages.0.downsample.{key}": v for key, v in state.items()})
    merging.load_state_dict({key.removeprefix("layers.1.downsample."): v for key, v in converted.items()})
    image = torch.randn(1, 12, 6, 8, generator=generator)
    columns = F.unfold(image, kernel_size=2, stride=2).transpose(1, 2)
    expected = F.linear(F.layer_norm(columns, (48,), scale, shift), weight).view(1, 3, 4, 24)
    torch.testing.assert_close(merging(image.permute(0, 2, 3, 1)), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def segformer():
    cfg = config(MODELS["mit-segformer-gmm"][0])
    model = randomised(build_model(cfg))
    return cfg, model, mmsegmentation_state("mit-segformer-gmm", model)


def test_partial_checkpoints_are_refused_and_nothing_is_written(segformer, convert, capsys):
    cfg, model, state = segformer
    part = {key: value for key, value in state.items() if "fusion_conv" not in key}
    part["decode_head.surprise.weight"] = torch.zeros(3)
    part["decode_head.convs.0.conv.weight"] = torch.zeros(4, 32, 1, 1)
    status, output = convert(cfg, part)
    captured = capsys.readouterr()
    assert status == 1 and not output.exists() and not list(output.parent.glob("*.partial"))
    assert "decoder.fuse.weight" in captured.out and "decoder.fuse.norm.running_var" in captured.out
    assert re.search(r"unused .*: 1\n  decode_head.surprise.weight", captured.out)
    assert "decoder.project.0.weight: (4, 32, 1, 1) in the checkpoint, (16, 32, 1, 1)" in captured.out
    assert "nothing is written" in captured.err and "--allow-missing PREFIX" in captured.err
    part = {key: value for key, value in state.items() if "fusion_conv" not in key}
    assert convert(cfg, part, "--allow-missing", "decoder.pro")[0] == 1
    status, output = convert(cfg, part, "--allow-missing", "decoder.fuse.")
    assert status == 0
    config = str(output.parent / "config.yaml")
    itself = f"{output.parent}/./ours.pth"
    assert main(["convert", "--config-file", config, str(output), "--out", itself]) == 1
    assert "is INPUT itself, which would be lost" in capsys.readouterr().err
    # Counters count as filled: files of old versions have none.
    rest = ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    written = torch.load(output, weights_only=True)["model"]
    assert set(model.state_dict()) - set(written) == {f"decoder.fuse.{name}" for name in rest}


def test_mixtures_that_do_not_fit_are_refused(segformer, convert, capsys):
    cfg, _, state = segformer
    status, _ = convert(cfg, {key: value for key, value in state.items() if key != "decode_head.queue"})
    assert status == 1
    assert "classifier.bank.means" in capsys.readouterr().out
    status, _ = convert(cfg, {**state, "decode_head.queue_ptr": torch.zeros(3).long()})
    assert status == 1 and "5 x 2 components as means has them, found 10 and 3" in capsys.readouterr().err
    # A head of another rule: the cure is said.
    ours = [*MODELS["mit-segformer-gmm"][0], "MODEL.GMM.PROJECTION", "mlp", "MODEL.GMM.WARM_START", True]
    assert convert(config(ours), state)[0] == 1
    out = capsys.readouterr().out
    assert "MODEL.GMM.PROJECTION released" in out and "MODEL.GMM.WARM_START False" in out


def test_stored_features_are_kept_where_the_config_keeps_them(segformer, convert, capsys):
    _, _, state = segformer
    keeping = [*MODELS["mit-segformer-gmm"][0], "MODEL.GMM.SAVE_MEMORY", True]
    status, output = convert(config(keeping), state)
    assert status == 0
    memory = torch.load(output, weights_only=True)["model"]["classifier.bank.memory.ring"]
    assert torch.equal(memory[:, :SLOTS], state["decode_head.queue"].transpose(1, 2))
    assert convert(config([*keeping, "MODEL.GMM.MEMORY_SIZE", 50]), state)[0] == 1
    assert "MODEL.GMM.MEMORY_SIZE: the checkpoint's memory has 6 slots" in capsys.readouterr().err


def test_dilated_detectron2_resnets_come_with_a_note(convert, capsys):
    name = "resnet-psp-softmax"
    dilated = [*MODELS[name][0], "MODEL.RESNETS.RES4_DILATION", 2, "MODEL.RESNETS.RES5_DILATION", 4]
    state = mmsegmentation_state(name, build_model(config(MODELS[name][0])))
    assert convert(config(MODELS[name][0]), state)[0] == 0
    assert "note:" not in capsys.readouterr().out
    assert convert(config(dilated), state)[0] == 0
    assert "note: MMSegmentation gives the first block of a dilated stage" in capsys.readouterr().out


def test_official_files_of_a_backbone_alone(convert, capsys):
    """A Swin file as its authors save it: merging at the end of a stage, columns first."""
    cfg = config([*SWIN, *decoder("UPerNet")])
    model = randomised(build_model(cfg))
    official = {"head.weight": torch.zeros(1000, 96), "norm.weight": torch.zeros(96)}
    for key, value in model.backbone.model.state_dict().items():
        stage = int(key[len("layers_")]) if key.startswith("layers_") else None
        if ".downsample." in key:
            key = key.replace(f"layers_{stage}", f"layers_{stage - 1}")
        official[key.replace("layers_", "layers.")] = value
    arguments = ("--allow-missing", "decoder.", "--allow-missing", "classifier.")
    assert convert(cfg, official, *arguments, wrapper="model")[0] == 1
    captured = capsys.readouterr()
    assert "backbone.output_norms.level0.weight" in captured.err and "head.fc.weight" in captured.out
    norms = ("--allow-missing", "backbone.output_norms.")
    status, output = convert(cfg, official, *arguments, *norms, wrapper="model")
    assert status == 0
    written = torch.load(output, weights_only=True)["model"]
    for key, value in model.backbone.model.state_dict().items():
        assert torch.equal(written[f"backbone.model.{key}"], value), key


def test_files_and_models_that_cannot_be_converted_are_named(convert, tmp_path, capsys):
    assert convert(config([*MIT, *decoder("DeepLabV3Plus")]), {"decode_head.a": torch.zeros(1)})[0] == 1
    assert "MODEL.DECODER.NAME: checkpoints can be converted for Sep" in capsys.readouterr().err
    torch.save({"state_dict": {"backbone.x": torch.zeros(1)}, "meta": Path("x")}, tmp_path / "theirs.pth")
    command = ["--config-file", str(tmp_path / "config.yaml")]
    for name, message in (("theirs", "INPUT: .* is a pickle that names pathlib"), ("none", "INPUT: no file")):
        assert main(["convert", *command, str(tmp_path / f"{name}.pth"), str(tmp_path / "ours.pth")]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_model_zoo_pickles_fill_the_backbone_or_are_refused(tmp_path):
    """MODEL.WEIGHTS takes what Detectron2's model zoo has: numpy arrays under a backbone's names."""
    cfg = config([*DEEP_RESNET, *decoder("PSP")])
    model = build_model(cfg)
    expected = randomised(build_model(cfg)).backbone.state_dict()
    arrays = {key: value.numpy() for key, value in expected.items() if not key.endswith("tracked")}
    zoo = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(zoo))
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    trust_pickles(True)
    try:
        Checkpointer(model).load(str(tmp_path / "R-50.pkl"))
        # Every block has its place in a deeper network, whose other blocks would stay random.
        deeper = build_model(config([*DEEP_RESNET, *decoder("PSP"), "MODEL.RESNETS.DEPTH", 101]))
        with pytest.raises(ValueError, match=r"R-50\.pkl leaves \d+ tensors of the backbone unfilled"):
            Checkpointer(deeper).load(str(tmp_path / "R-50.pkl"))
    finally:
        trust_pickles(False)
    for key, value in arrays.items():
        assert torch.equal(model.backbone.state_dict()[key], torch.from_numpy(value)), key
    for key, value in before.items():
        assert torch.equal(model.decoder.state_dict()[key], value), key


def test_other_files_are_no_checkpoints(segformer, tmp_path):
    _, model, state = segformer
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS: nothing in .*MODEL\.BACKBONE\.WEIGHTS.*convert"):
        Checkpointer(model).load(str(tmp_path / "theirs.pth"))
