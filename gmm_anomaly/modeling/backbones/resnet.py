"""Keys of Detectron2's ResNets, checked before its assertions and look-ups fail on them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.projects import deeplab  # noqa: F401  (registers build_resnet_deeplab_backbone)

PLAIN, DILATED = "build_resnet_backbone", "build_resnet_deeplab_backbone"
DEPTHS = {PLAIN: (18, 34, 50, 101, 152), DILATED: (50, 101, 152)}


def check_resnet_keys(cfg: CfgNode) -> None:
    """Check ``MODEL.RESNETS`` for the backbone that ``MODEL.BACKBONE.NAME`` names, if it is a ResNet.

    Raises:
        ValueError: a depth, dilation or width that the ResNet cannot have; says which one can.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in DEPTHS:
        return
    keys = cfg.MODEL.RESNETS
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
