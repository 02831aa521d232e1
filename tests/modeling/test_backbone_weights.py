"""Weight files of the networks' authors and of other implementations, and parity with those."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.backbone.swin import SwinTransformer

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.modeling.backbones import MixTransformer, TimmBackbone, build_backbone
from gmm_anomaly.modeling.backbones.mit import MitShape, mit_shape
from gmm_anomaly.modeling.backbones.mit_names import official_names

SMALL = MitShape(channels=(8, 16, 40, 64), depths=(1, 2, 1, 1))
SWIN = "swin_tiny_patch4_window7_224"


def shaken(module):
    """Random weights everywhere: norms and biases start as ones and zeros, which hide mistakes."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def saved(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def build(*overrides):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return build_backbone(cfg)


@pytest.fixture(scope="module")
def transformers_mit():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_sizes": list(SMALL.channels), "depths": list(SMALL.depths)}
    return shaken(transformers.SegformerModel(transformers.SegformerConfig(**shape)))


def test_mit_agrees_with_transformers(transformers_mit):
    backbone = MixTransformer(SMALL).eval()
    backbone.load_state_dict(official_names(transformers_mit.state_dict()))
    for size in ((64, 96), (75, 91)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = transformers_mit(image, output_hidden_states=True).hidden_states
            features = backbone(image)
        for found, feature in zip(features.values(), expected, strict=True):
            torch.testing.assert_close(found, feature, rtol=1e-4, atol=1e-4)


def test_mit_reads_the_files_that_transformers_writes(transformers_mit, tmp_path):
    # They keep the names of transformers 4, as the released ones do, and are safetensors.
    transformers_mit.save_pretrained(tmp_path)
    backbone = MixTransformer(SMALL)
    backbone.load(str(tmp_path / "model.safetensors"), "mit")
    assert equal(backbone.state_dict(), official_names(transformers_mit.state_dict()))


def test_mit_loads_what_transformers_downloads(tmp_path, monkeypatch):
    """Into the real network, from a repository with the classification checkpoint that the hub has."""
    transformers = pytest.importorskip("transformers")
    published = shaken(transformers.SegformerForImageClassification(transformers.SegformerConfig()))
    published.save_pretrained(tmp_path)
    found_at = {"nvidia/mit-b0": tmp_path}
    real = transformers.SegformerModel.from_pretrained

    def from_hub(name, **options):
        return real(found_at[name], **options)

    monkeypatch.setattr(transformers.SegformerModel, "from_pretrained", from_hub)
    keys = ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.WEIGHTS", "hub", "MODEL.MIT.NAME"]
    backbone = build(*keys, "mit_b0")
    assert equal(backbone.state_dict(), official_names(published.segformer.state_dict()))
    found_at["nvidia/mit-b1"] = tmp_path
    with pytest.raises(ValueError, match=r"MODEL\.MIT\.WEIGHTS: nvidia/mit-b1 does not fit mit_b1"):
        build(*keys, "mit_b1")
    with pytest.raises(
        OSError, match=r'MODEL\.MIT\.WEIGHTS: "hub".*could not be downloaded \(KeyError.*mit-b2'
    ):
        build(*keys, "mit_b2")


@pytest.mark.parametrize("family, name", [("timm", "resnet18"), ("vit", "vit_tiny_patch16_224")])
def test_a_hub_that_cannot_be_reached_is_no_unknown_model(family, name, monkeypatch):
    import timm

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", unreachable)
    key = f"MODEL.{family.upper()}"
    with pytest.raises(OSError, match=rf"{key}\.WEIGHTS: .*{name}.*no route to host.*give that file"):
        build("MODEL.BACKBONE.NAME", f"build_{family}_backbone", f"{key}.NAME", name, f"{key}.WEIGHTS", "hub")


def mmsegmentation_names(state):
    """Official names to MMSegmentation's, one tensor after the other as its converter does it."""
    result = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        kind, stage = part[:-1], int(part[-1]) - 1
        if kind == "patch_embed":
            result[f"layers.{stage}.0.{rest.replace('proj.', 'projection.')}"] = value
        elif kind == "norm":
            result[f"layers.{stage}.2.{rest}"] = value
        elif ".attn.q." in name:
            joint = torch.cat([value, state[name.replace(".q.", ".kv.")]])
            result[f"layers.{stage}.1.{rest.replace('attn.q.', 'attn.attn.in_proj_')}"] = joint
        elif ".attn.kv." not in name:
            for old, new in (
                ("attn.proj.", "attn.attn.out_proj."),
                ("mlp.fc1.", "ffn.layers.0."),
                ("mlp.dwconv.dwconv.", "ffn.layers.1."),
                ("mlp.fc2.", "ffn.layers.4."),
            ):
                rest = rest.replace(old, new)
            linear = "ffn.layers" in rest and value.dim() == 2
            result[f"layers.{stage}.1.{rest}"] = value[:, :, None, None] if linear else value
    return result


def test_mit_reads_official_and_mmsegmentation_files(tmp_path, caplog):
    state = shaken(MixTransformer(SMALL)).state_dict()
    classifier = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    segmentor = {f"backbone.{name}": value for name, value in mmsegmentation_names(state).items()}
    segmentor["decode_head.conv_seg.weight"] = torch.zeros(19, 64, 1, 1)
    for file in (state | classifier, {"state_dict": segmentor, "meta": {"epoch": 1}}):
        backbone = MixTransformer(SMALL)
        with caplog.at_level(logging.INFO):
            backbone.load(saved(file, tmp_path), "mit")
        assert equal(backbone.state_dict(), state)
    assert "not used: head.weight, head.bias" in caplog.text


def test_mit_sizes():
    # Encoder parameters in millions, table 1 of the paper.
    for name, millions in {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}.items():
        with torch.device("meta"):
            backbone = MixTransformer(mit_shape(f"mit_{name}"))
        count = sum(parameter.numel() for parameter in backbone.parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.1), name


@pytest.fixture(scope="module")
def official_swin():
    # Swin's object detection code, as Detectron2 republishes it: the official names, a norm on each output.
    return shaken(SwinTransformer())


def test_swin_agrees_with_the_official_segmentation_code(official_swin, tmp_path):
    classifier = {"head.weight": torch.zeros(10, 768), "head.bias": torch.zeros(10)}
    state = official_swin.state_dict()
    assert "layers.0.blocks.1.attn.relative_position_index" in state
    # ImageNet files hold the masks of 224 pixels.
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    file = saved({"model": state | classifier}, tmp_path)
    backbone = TimmBackbone(SWIN, out_indices=(0, 1, 2, 3), weights=file).eval()
    for level in range(4):
        norm = getattr(official_swin, f"norm{level}")
        backbone.output_norms[f"level{level}"].load_state_dict(norm.state_dict())
    # No multiples of the windows of 7 patches of 4 pixels, at any level.
    for size in ((64, 96), (224, 256)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, found = official_swin(image), backbone(image)
        for feature, reference in zip(found.values(), expected.values(), strict=True):
            torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)


def test_incomplete_and_larger_files_are_refused(official_swin, tmp_path):
    state = official_swin.state_dict()
    missing = "layers.2.blocks.3.mlp.fc1.bias"
    short = {name: value for name, value in state.items() if name != missing}
    deeper = state | {"layers.2.blocks.6.norm1.weight": torch.zeros(384)}
    for file, message in (
        (short, r".* 1 of 16\d tensors"),
        (deeper, r"1 of its tensors have no place .*larger"),
    ):
        with pytest.raises(ValueError, match=rf"MODEL\.TIMM\.WEIGHTS: .* does not fit {SWIN}: {message}"):
            TimmBackbone(SWIN, out_indices=(0, 1, 2, 3), weights=saved({"model": file}, tmp_path))


def test_vit_reads_official_dinov2_files(tmp_path):
    name = ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.NAME", "vit_small_patch14_dinov2"]
    state = {key: value.clone() for key, value in build(*name).net.vit.state_dict().items()}
    # A file for 224 pixels: 16 x 16 position embeddings instead of 37 x 37, here a ramp from left to right.
    ramp = torch.linspace(0, 1, 16).expand(16, 16).reshape(1, 256, 1).expand(-1, -1, 384)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 7.0), ramp], dim=1)
    state["mask_token"] = torch.zeros(1, 384)
    vit = build(*name, "MODEL.VIT.WEIGHTS", saved(state, tmp_path)).net.vit
    for key, value in vit.state_dict().items():
        assert key == "pos_embed" or torch.equal(value, state[key]), key
    assert vit.pos_embed.shape == (1, 1 + 37 * 37, 384)
    torch.testing.assert_close(vit.pos_embed[0, 0], torch.full((384,), 7.0))
    grid = vit.pos_embed[0, 1:].reshape(37, 37, 384)
    torch.testing.assert_close(grid, grid[:1, :, :1].expand_as(grid), rtol=1e-4, atol=1e-4)
    # Bicubic interpolation keeps a ramp a ramp away from the borders.
    inner = grid[0, 6:31, 0]
    torch.testing.assert_close(inner.diff(), torch.full((24,), 16 / 37 / 15), rtol=0.02, atol=0)


@pytest.mark.parametrize("family, name", [("mit", "mit_b0"), ("vit", "vit_tiny_patch16_224")])
def test_unusable_files_are_named(family, name, tmp_path):
    key = f"MODEL.{family.upper()}.WEIGHTS"
    keys = ["MODEL.BACKBONE.NAME", f"build_{family}_backbone", f"MODEL.{family.upper()}.NAME", name, key]
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    escaped = key.replace(".", r"\.")
    with pytest.raises(FileNotFoundError, match=rf"{escaped}: no file .*missing\.pth"):
        build(*keys, str(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match=rf"{escaped}: .*text\.pth cannot be read as a file of tensors"):
        build(*keys, str(text))
    with pytest.raises(ValueError, match=rf"{escaped}: .* holds no state dict"):
        build(*keys, saved({"epoch": 3}, tmp_path))
    with pytest.raises(ValueError, match=rf"{escaped}: .* does not fit {name}: missing"):
        build(*keys, saved({"a": torch.zeros(3)}, tmp_path))
