"""Backbones. Importing this package registers them beside Detectron2's own ResNets, dilated or not."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.projects import deeplab  # noqa: F401  (registers build_resnet_deeplab_backbone)

from ..registry import look_up
from .timm import TimmBackbone, build_timm_backbone

__all__ = ["TimmBackbone", "build_backbone", "build_timm_backbone"]


def build_backbone(cfg: CfgNode) -> Backbone:
    """The backbone ``MODEL.BACKBONE.NAME`` names, for images with the channels of ``MODEL.PIXEL_MEAN``."""
    builder = look_up(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    return builder(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
