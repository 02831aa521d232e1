"""From the names of a Mix Transformer's tensors in MMSegmentation and transformers to the official ones."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# transformers 4, whose names released files keep -> transformers 5, in front and further behind.
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


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Mix Transformer's state dict under the official names, whichever of the three it comes with.

    Args:
        state: names without the "backbone." of a whole segmentor. Names of other parts are kept.

    Returns:
        A new dict: 1x1 convolutions as linear layers, keys and values in one tensor, keys first.
    """
    result = {}
    for name, value in state.items():
        name = _translated(name)
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


def _translated(name: str) -> str:
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
