"""Names of a backbone's tensors in MMSegmentation and in its authors' files -> names in this project."""

from __future__ import annotations

import re
from collections.abc import Callable

from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from gmm_anomaly.modeling.backbones import MixTransformer, TimmBackbone
from gmm_anomaly.modeling.backbones.mit_names import official_names

# One tensor by its name without "backbone." -> the tensors that it makes, by theirs.
Renaming = Callable[[str, Tensor], list[tuple[str, Tensor]]]

# Deep stem (ResNetV1c): positions of the convolutions and norms in its Sequential.
_DEEP_CONVS = {"0": "conv1", "3": "conv2", "6": "conv3"}
_DEEP_NORMS = {"1": "conv1", "4": "conv2", "7": "conv3"}


def backbone_renaming(backbone: nn.Module) -> Renaming:
    """How the tensors of the same network are called in ``backbone``."""
    if isinstance(backbone, MixTransformer):
        return lambda name, value: list(official_names({name: value}).items())
    if isinstance(backbone, ResNet):
        return lambda name, value: [(detectron2_resnet_name(name), value)]
    if isinstance(backbone, TimmBackbone) and backbone.name.startswith("swin_"):
        return timm_swin_tensor
    if isinstance(backbone, TimmBackbone):
        return lambda name, value: [(f"model.{timm_resnet_name(name)}", value)]
    return lambda name, value: [(name, value)]


def detectron2_resnet_name(name: str) -> str:
    """torchvision and MMSegmentation (``ResNet``, ``ResNetV1c``) -> Detectron2."""
    if match := re.fullmatch(r"stem\.(\d)\.(.+)", name):
        index, rest = match.groups()
        if index in _DEEP_CONVS:
            return f"stem.{_DEEP_CONVS[index]}.{rest}"
        return f"stem.{_DEEP_NORMS[index]}.norm.{rest}" if index in _DEEP_NORMS else name
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name):
        inner = match[3].replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        inner = re.sub(r"^bn(\d)", r"conv\1.norm", inner)
        return f"res{int(match[1]) + 1}.{match[2]}.{inner}"
    return re.sub(r"^bn1\.", "stem.conv1.norm.", re.sub(r"^conv1\.", "stem.conv1.", name))


def timm_resnet_name(name: str) -> str:
    """MMSegmentation's ``ResNetV1c`` -> timm's ResNets with a deep stem ("resnet50c"); others are alike."""
    return re.sub(r"^stem\.", "conv1.", re.sub(r"^stem\.7\.", "bn1.", name))


def timm_swin_tensor(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Official names and MMSegmentation's -> :class:`TimmBackbone`.

    Both merge patches at the end of a stage, timm at the start of the next one. MMSegmentation takes the
    merged 2x2 pixels from ``nn.Unfold``: channel by channel, rows first; the others pixel by pixel, columns
    first.
    """
    if match := re.fullmatch(r"norm(\d)\.(.+)", name):
        return [(f"output_norms.level{match[1]}.{match[2]}", value)]
    if match := re.fullmatch(r"(stages|layers)\.(\d)\.downsample\.(.+)", name):
        if match[1] == "stages":
            by_pixel = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
            value = by_pixel[..., [0, 2, 1, 3], :].flatten(-2)
        return [(f"model.layers_{int(match[2]) + 1}.downsample.{match[3]}", value)]
    for theirs, ours in (
        (r"^(?:stages|layers)\.(\d)\.", r"layers_\1."),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
    ):
        name = re.sub(theirs, ours, name)
    return [(f"model.{name}", value)]


def dilates_otherwise(backbone: nn.Module) -> bool:
    """Whether the first block of a stage has another dilation than in MMSegmentation, which dilates it like
    the stage before: so in Detectron2's dilated ResNets."""
    return isinstance(backbone, ResNet) and any(
        getattr(stage[0], "conv2", stage[0].conv1).dilation != (1, 1) for stage in backbone.stages
    )
