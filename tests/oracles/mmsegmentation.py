"""From this project's names of tensors to those that MMSegmentation's segmentors have."""

from __future__ import annotations

import re

import torch
from torch.nn import functional as F

# This project's names -> MMSegmentation's, the decoders' convolutions written out as its ConvModules are.
POOLING = {
    **{f"pyramid.branches.{i}.conv": f"psp_modules.{i}.1" for i in range(4)},
    "pyramid.bottleneck": "bottleneck",
}
HEAD_NAMES = {
    "SeparableDeepLabV3Plus": {
        "image_pool.conv": "image_pool.1", "branches.0": "aspp_modules.0", "bottleneck": "bottleneck",
        "project": "c1_bottleneck",
        **{f"branches.{i}.{part}": f"aspp_modules.{i}.{part}_conv"
           for i in (1, 2, 3) for part in ("depthwise", "pointwise")},
        **{f"refine.{i}.{part}": f"sep_bottleneck.{i}.{part}_conv"
           for i in (0, 1) for part in ("depthwise", "pointwise")},
    },
    "OCRNet": {
        "bottleneck": "bottleneck",
        **{f"attention.{what}.{i}": f"object_context_block.{what}_project.{i}"
           for what in ("query", "key") for i in (0, 1)},
        "attention.value": "object_context_block.value_project",
        "attention.out": "object_context_block.out_project",
        "attention.fuse": "object_context_block.bottleneck",
    },
    "UPerNet": {
        **POOLING, "fuse": "fpn_bottleneck",
        **{f"lateral.{i}": f"lateral_convs.{i}" for i in range(3)},
        **{f"smooth.{i}": f"fpn_convs.{i}" for i in range(3)},
    },
    "SegFormer": {**{f"project.{i}": f"convs.{i}" for i in range(4)}, "fuse": "fusion_conv"},
    "PSP": POOLING,
}  # fmt: skip


def mm_mit(state):
    """A Mix Transformer's state dict from its official names, as MMSegmentation's converter does it."""
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


def mm_head(name, decoder_name, head):
    """The name of a decoder's tensor."""
    table = {start: f"{head}.{target}" for start, target in HEAD_NAMES[decoder_name].items()}
    table["auxiliary.conv"] = "auxiliary_head.convs.0"
    if name.startswith("auxiliary.predictor."):
        return name.replace("auxiliary.predictor", "auxiliary_head.conv_seg")
    (start,) = [start for start in table if name.startswith(start + ".")]
    kind = "bn" if ".norm." in name else "conv"
    return f"{table[start]}.{kind}.{name.removeprefix(start + '.').removeprefix('norm.')}"


def mm_resnet(name, value):
    for number, ours in enumerate(("stem.conv1.", "stem.conv2.", "stem.conv3.")):
        if name.startswith(ours + "norm."):
            return {name.replace(ours + "norm", f"stem.{3 * number + 1}"): value}
        name = name.replace(ours, f"stem.{3 * number}.")
    for stage in (2, 3, 4, 5):
        name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for number in (1, 2, 3):
        name = name.replace(f"conv{number}.norm", f"bn{number}")
    return {name: value}


def mm_timm_resnet(name, value):
    name = name.removeprefix("model.")
    return {re.sub("^bn1", "stem.7", re.sub("^conv1", "stem", name)): value}


def mm_swin(name, value):
    if name.startswith("output_norms.level"):
        return {name.replace("output_norms.level", "norm"): value}
    name = name.removeprefix("model.").replace("patch_embed.proj.", "patch_embed.projection.")
    name = name.replace(".attn.", ".attn.w_msa.")
    name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
    if ".downsample." in name:
        # timm: pixels (0,0), (1,0), (0,1), (1,1) one after the other; nn.Unfold: channel by channel.
        channels = value.shape[-1] // 4
        unfolded = torch.empty_like(value)
        for position, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
            for channel in range(channels):
                unfolded[..., channel * 4 + 2 * row + column] = value[..., position * channels + channel]
        stage = int(name[len("layers_")])
        return {name.replace(f"layers_{stage}", f"stages.{stage - 1}"): unfolded}
    return {name.replace("layers_", "stages."): value}


BACKBONES = {"resnet": mm_resnet, "timm": mm_timm_resnet, "swin": mm_swin}


def released_mixtures(model):
    """The released head's state, and tensors that it has besides."""
    generator = torch.Generator().manual_seed(1)
    bank = model.classifier.bank
    components = bank.num_classes * bank.num_components
    queue = torch.randn(components, bank.dim, bank.memory.slots, generator=generator)
    own = {"means": bank.means, "diagonal": bank.scales, "queue": F.normalize(queue, dim=1)}
    own["queue_ptr"] = torch.arange(components) % bank.memory.slots
    own |= {"eye_matrix": torch.ones(bank.dim), "iteration_counter": torch.tensor([9.0])}
    classes, channels = bank.num_classes, model.decoder.out_channels
    own |= {"conv_seg.weight": torch.zeros(classes, channels, 1, 1), "conv_seg.bias": torch.zeros(classes)}
    return {name: value.clone() for name, value in own.items()}


def mmsegmentation_state(name, model):
    """The tensors of a segmentor as MMSegmentation would have saved them.

    Args:
        name: begins with the backbone's family, "mit", "resnet", "timm" or "swin", and "-".
    """
    family, decoder_name = name.split("-")[0], type(model.decoder).__name__.removesuffix("Decoder")
    cascade = decoder_name == "OCRNet"
    head = "decode_head.1" if cascade else "decode_head"
    own = model.backbone.state_dict()
    backbone = mm_mit(own) if family == "mit" else {}
    for key, value in own.items() if family != "mit" else ():
        backbone |= BACKBONES[family](key, value)
    state = {f"backbone.{key}": value for key, value in backbone.items()}
    state |= {mm_head(key, decoder_name, head): v for key, v in model.decoder.state_dict().items()}
    for key, value in model.classifier.state_dict().items():
        if not key.startswith("bank."):
            key = key.replace("project.1.", "projection.conv.").replace("project.2.", "projection.bn.")
            key = key.replace("feature_norm", "feat_norm").replace("class_norm", "mask_norm")
            state[f"{head}.{key.replace('predictor', 'conv_seg')}"] = value
    if hasattr(model.classifier, "bank"):
        state |= {f"{head}.{key}": value for key, value in released_mixtures(model).items()}
    if cascade:
        state = {key.replace("auxiliary_head", "decode_head.0"): value for key, value in state.items()}
    if family == "swin":
        state["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(49, 49).long()
    return state
