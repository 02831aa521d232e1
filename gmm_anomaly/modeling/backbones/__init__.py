"""Backbones. Importing this package registers them beside Detectron2's own ResNets, dilated or not."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from ..registry import look_up
from .checkpointing import checkpoint_gradients
from .freezing import FreezableBackbone, freeze_backbone
from .mit import MixTransformer, build_mit_backbone
from .resnet import check_resnet_keys
from .timm import TimmBackbone, build_timm_backbone
from .vit import VitBackbone, build_vit_backbone

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

logger = logging.getLogger(__name__)


def build_backbone(cfg: CfgNode) -> Backbone:
    """The backbone ``MODEL.BACKBONE.NAME`` names, for images with the channels of ``MODEL.PIXEL_MEAN``.

    ``FREEZE_AT`` is the builders' to follow; ``FREEZE`` and ``GRADIENT_CHECKPOINTING`` are followed here.

    Raises:
        ValueError: an unknown name, or keys that do not fit it.
    """
    builder = look_up(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    check_resnet_keys(cfg)
    backbone = builder(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    if cfg.MODEL.BACKBONE.FREEZE and getattr(backbone, "lacks_weights", False):
        # Random features would stay random.
        logger.warning("MODEL.BACKBONE.FREEZE is ignored: the backbone has no weights, so it trains")
    elif cfg.MODEL.BACKBONE.FREEZE:
        freeze_backbone(backbone)
    if cfg.MODEL.BACKBONE.GRADIENT_CHECKPOINTING:
        checkpoint_gradients(backbone)
    return backbone
