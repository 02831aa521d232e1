"""Names of backbones' tensors in other code bases -> names in this project."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import torch
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from .mit import MixTransformer
from .timm import TimmBackbone
from .vit import VitBackbone

# Not needed to compute features: counters, which older files lack.
COUNTER = "num_batches_tracked"


def own_names(backbone: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the same network under the names of ``backbone``; what is unknown keeps its name.

    Args:
        state: names of torchvision, timm, transformers, MMSegmentation or the network's authors, without the
            "backbone." of a whole segmentor.
    """
    if isinstance(backbone, MixTransformer):
        return mit_names(state)
    if isinstance(backbone, ResNet):
        return resnet_names(state)
    if not isinstance(backbone, (TimmBackbone, VitBackbone)):
        return state
    # MMSegmentation's, and official segmentation code's, norms of the outputs.
    norms = {
        f"output_norms.level{name[4:]}": name
        for name in state
        if re.match(r"norm\d\.", name) and getattr(backbone, "output_norms", None) is not None
    }
    rest = {name: value for name, value in state.items() if name not in norms.values()}
    named = timm_names(backbone.get_submodule(backbone.network), backbone.name, rest)
    own = backbone.state_dict()
    return {f"{backbone.network}.{name}": value for name, value in named.items()} | {
        new: state[name] for new, name in norms.items() if new in own and own[new].shape == state[name].shape
    }


def timm_names(model: nn.Module, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of a timm model, whole or a feature pyramid, by the best reading.

    Readings are timm's own names; MMSegmentation's; the authors' names, where timm has a filter for them
    (Swin, DINOv2, ConvNeXt, ...; position embeddings are resampled, buffers that depend on the image size
    dropped); and those of another implementation of the same network whose tensors come in the same order
    with the same shapes (counters of batch norm aside).

    Args:
        model: a timm model named ``name``.
    """
    if not misfits(model, state):
        return state
    import timm

    # Names and shapes are enough.
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False)
    readings = [state, mmsegmentation_timm_names(state), _by_filter(whole, state), _by_order(whole, state)]
    children = {child for child, _ in model.named_children()}
    return min(
        ({_flat(name, children): value for name, value in reading.items()} for reading in readings),
        key=lambda reading: len(misfits(model, reading)),
    )


def _by_filter(whole: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    filter_state = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if filter_state is None:
        return state
    try:
        return filter_state(dict(state), whole)
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError):
        # Written for its own family's files; it may stumble over others. Nothing fits by name then.
        return {}


def _by_order(whole: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    wanted, given = (
        {name: value for name, value in names.items() if not name.endswith(COUNTER)}
        for names in (whole.state_dict(), state)
    )
    if [value.shape for value in wanted.values()] != [value.shape for value in given.values()]:
        return {}
    return dict(zip(wanted, given.values(), strict=True))


def _flat(name: str, children: set[str]) -> str:
    """A name of the whole model in its feature pyramid, which takes ``layers.0`` out as ``layers_0``."""
    first, _, rest = name.partition(".")
    second, _, inner = rest.partition(".")
    return f"{first}_{second}.{inner}" if f"{first}_{second}" in children and first not in children else name


def misfits(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """What ``state`` lacks to fill ``module``: names that are missing or have another shape."""
    return [
        name if name not in state else f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in module.state_dict().items()
        if not name.endswith(COUNTER) and (name not in state or state[name].shape != value.shape)
    ]


# Mix Transformers. transformers 4, whose names released files keep -> transformers 5.
_OLDER = [
    (r"^segformer\.", ""),
    (r"^encoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.block\.(\d)\.", r"stages.\1.blocks."),
    (r"^encoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
    (r"\.attention\.self\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
]
# What follows the stage's number in transformers, and in MMSegmentation -> official name, # the stage.
_STAGE_PARTS = [
    (r"patch_embeddings\.proj|0\.projection", "patch_embed#.proj"),
    (r"patch_embeddings\.layer_norm|0\.norm", "patch_embed#.norm"),
    (r"layer_norm|2", "norm#"),
]
# What follows the block's number.
_BLOCK_PARTS = [
    (r"layernorm_before|norm1", "norm1"),
    (r"layernorm_after|norm2", "norm2"),
    (r"attention\.q_proj", "attn.q"),
    (r"attention\.k_proj", "attn.k"),
    (r"attention\.v_proj", "attn.v"),
    (r"attn\.attn\.in_proj", "attn.qkv"),
    (r"attention\.o_proj|attn\.attn\.out_proj", "attn.proj"),
    (r"attention\.sequence_reduction\.sequence_reduction|attn\.sr", "attn.sr"),
    (r"attention\.sequence_reduction\.layer_norm|attn\.norm", "attn.norm"),
    (r"mlp\.fc1|ffn\.layers\.0", "mlp.fc1"),
    (r"mlp\.dwconv\.dwconv|ffn\.layers\.1", "mlp.dwconv.dwconv"),
    (r"mlp\.fc2|ffn\.layers\.4", "mlp.fc2"),
]
# Stages count from 0 in both. nn.MultiheadAttention says in_proj_weight, everything else ends in .weight.
_KIND = r"[._](?P<kind>weight|bias)"
_IN_STAGE = re.compile(rf"(?:stages|layers)\.(?P<stage>\d)\.(?P<part>.+?){_KIND}")
_IN_BLOCK = re.compile(
    rf"(?:stages\.(?P<stage>\d)\.blocks|layers\.(?P<layer>\d)\.1)\.(?P<block>\d+)\.(?P<part>.+?){_KIND}"
)


def mit_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Mix Transformer's state dict under the official names, whichever of the three it comes with.

    Args:
        state: names without the "backbone." of a whole segmentor. Names of other parts are kept.

    Returns:
        A new dict: 1x1 convolutions as linear layers, keys and values in one tensor, keys first.
    """
    result = {}
    for name, value in state.items():
        name = _official_mit_name(name)
        if ".attn.qkv." in name:
            split = value.shape[0] // 3
            result[name.replace(".qkv.", ".q.")] = value[:split]
            result[name.replace(".qkv.", ".kv.")] = value[split:]
        elif name.endswith(("fc1.weight", "fc2.weight")) and value.dim() == 4:
            result[name] = value.flatten(1)
        else:
            result[name] = value
    for name in [name for name in result if ".attn.k." in name]:
        other = name.replace(".attn.k.", ".attn.v.")
        if other in result:
            result[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([result.pop(name), result.pop(other)])
    return result


def _official_mit_name(name: str) -> str:
    for pattern, replacement in _OLDER:
        name = re.sub(pattern, replacement, name)
    match = _IN_BLOCK.fullmatch(name)
    if match is not None:
        stage = int(match["stage"] or match["layer"]) + 1
        for pattern, official in _BLOCK_PARTS:
            if re.fullmatch(pattern, match["part"]):
                return f"block{stage}.{match['block']}.{official}.{match['kind']}"
    match = _IN_STAGE.fullmatch(name)
    if match is not None:
        for pattern, official in _STAGE_PARTS:
            if re.fullmatch(pattern, match["part"]):
                return f"{official.replace('#', str(int(match['stage']) + 1))}.{match['kind']}"
    return name


# Deep stem (ResNetV1c): positions in its Sequential -> convolutions in Detectron2, with norms.
_DEEP_CONVS = {"0": "conv1", "3": "conv2", "6": "conv3"}
_DEEP_NORMS = {"1": "conv1", "4": "conv2", "7": "conv3"}


def resnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's, timm's and MMSegmentation's ``ResNet`` and ``ResNetV1c`` -> Detectron2's."""
    if "conv1.0.weight" in state:
        # timm's deep stem is conv1.0 to conv1.6, with the norm of the last convolution as bn1.
        timm = ((r"^conv1\.", "stem."), (r"^bn1\.", "stem.7."))
        state = {_replaced(name, timm): value for name, value in state.items()}
    return {_detectron2_resnet_name(name): value for name, value in state.items()}


def _detectron2_resnet_name(name: str) -> str:
    if match := re.fullmatch(r"stem\.(\d)\.(.+)", name):
        index, rest = match.groups()
        if index in _DEEP_CONVS:
            return f"stem.{_DEEP_CONVS[index]}.{rest}"
        return f"stem.{_DEEP_NORMS[index]}.norm.{rest}" if index in _DEEP_NORMS else name
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name):
        inner = match[3].replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        return f"res{int(match[1]) + 1}.{match[2]}." + re.sub(r"^bn(\d)", r"conv\1.norm", inner)
    return _replaced(name, ((r"^conv1\.", "stem.conv1."), (r"^bn1\.", "stem.conv1.norm.")))


def mmsegmentation_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMSegmentation's ``ResNetV1c`` and ``SwinTransformer`` -> timm's.

    MMSegmentation merges patches at the end of a stage, timm at the start of the next one. MMSegmentation
    takes the merged 2x2 pixels from ``nn.Unfold``: channel by channel, rows first; timm pixel by pixel,
    columns first.
    """
    result = {}
    for name, value in state.items():
        if match := re.fullmatch(r"stages\.(\d)\.downsample\.(.+)", name):
            by_pixel = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
            value = by_pixel[..., [0, 2, 1, 3], :].flatten(-2)
            name = f"layers.{int(match[1]) + 1}.downsample.{match[2]}"
        result[_replaced(name, _MMSEGMENTATION_TIMM)] = value
    return result


_MMSEGMENTATION_TIMM = (
    (r"^stem\.7\.", "bn1."),
    (r"^stem\.", "conv1."),
    (r"^stages\.(\d)\.", r"layers.\1."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
)


def _replaced(name: str, replacements: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in replacements:
        name = re.sub(pattern, replacement, name)
    return name
