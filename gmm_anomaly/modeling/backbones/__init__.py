"""Backbones. Importing this package registers them beside Detectron2's own ResNets, dilated or not."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.projects import deeplab  # noqa: F401  (registers build_resnet_deeplab_backbone)

from ..registry import look_up
from .base import FreezableBackbone, checkpoint_gradients
from .mit import MixTransformer, build_mit_backbone
from .timm import TimmBackbone, build_timm_backbone
from .vit import VitBackbone, build_vit_backbone
from .weights import load_pretrained

__all__ = [
    "FreezableBackbone",
    "MixTransformer",
    "TimmBackbone",
    "VitBackbone",
    "build_backbone",
    "build_mit_backbone",
    "build_timm_backbone",
    "build_vit_backbone",
]

# Detectron2's ResNets, and their depths.
PLAIN, DILATED = "build_resnet_backbone", "build_resnet_deeplab_backbone"
DEPTHS = {PLAIN: (18, 34, 50, 101, 152), DILATED: (50, 101, 152)}


def build_backbone(cfg: CfgNode) -> Backbone:
    """The backbone ``MODEL.BACKBONE.NAME`` names, with its weights, frozen as far as it is to be.

    For images with the channels of ``MODEL.PIXEL_MEAN``; by the other keys of ``MODEL.BACKBONE`` too.

    Raises:
        ValueError: an unknown name, keys that do not fit it, or weights of another network.
        FileNotFoundError: weights that are not there. OSError: weights that cannot be downloaded.
    """
    keys = cfg.MODEL.BACKBONE
    builder = look_up(BACKBONE_REGISTRY, keys.NAME, "MODEL.BACKBONE.NAME")
    if keys.NAME in DEPTHS:
        _check_resnet_keys(cfg)
    backbone = builder(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    if keys.WEIGHTS:
        load_pretrained(backbone, cfg)
    if isinstance(backbone, FreezableBackbone):
        backbone.freeze(keys.FREEZE_AT)
    elif keys.FREEZE_AT == 5:
        # Detectron2's ResNets did it as they were built; others may not.
        backbone.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)
    if keys.GRADIENT_CHECKPOINTING:
        checkpoint_gradients(backbone)
    return backbone


def _check_resnet_keys(cfg: CfgNode) -> None:
    """Check ``MODEL.RESNETS`` before Detectron2's assertions and look-ups fail on it.

    Raises:
        ValueError: a depth, dilation or width that the ResNet cannot have; says which one can.
    """
    name, keys = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if keys.DEPTH not in DEPTHS[name]:
        hint = " (dilated ResNet-18 and -34: build_timm_backbone)" if keys.DEPTH in DEPTHS[PLAIN] else ""
        raise ValueError(
            f"MODEL.RESNETS.DEPTH: {name} has {', '.join(map(str, DEPTHS[name]))}, found {keys.DEPTH}{hint}"
        )
    if keys.DEPTH < 50 and keys.RES2_OUT_CHANNELS != 64:
        raise ValueError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS: ResNet-{keys.DEPTH} has 64, found {keys.RES2_OUT_CHANNELS}"
        )
    dilations = (keys.RES4_DILATION, keys.RES5_DILATION)
    allowed = {PLAIN: [(1, 1), (1, 2)], DILATED: [(1, 1), (1, 2), (1, 4), (2, 4)]}[name]
    if keys.DEPTH < 50:
        allowed = [(1, 1)]
    if dilations not in allowed:
        raise ValueError(
            f"MODEL.RESNETS.RES4_DILATION and RES5_DILATION: {name} of depth {keys.DEPTH} can have "
            f"{', '.join(map(str, allowed))}, found {dilations}; output stride 8, (2, 4), needs {DILATED}"
        )
