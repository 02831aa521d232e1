"""Mask2Former of the package transformers, by config; the package is imported when a model is built."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from .backbones import TimmBackbone

logger = logging.getLogger(__name__)

# Groups of the pixel decoder's norms.
GROUPS = 32


def build_mask2former(cfg: CfgNode) -> nn.Module:
    """``Mask2FormerForUniversalSegmentation`` (Cheng et al., CVPR 2022) for ``MODEL.CLASSIFIER.NUM_CLASSES``.

    ``MODEL.MASK2FORMER.WEIGHTS`` names the weights, and with them the architecture; without, the keys beside
    it describe a network of random weights, but for those of a timm backbone.

    Raises:
        ImportError: the extra ``mask`` is not installed.
        FileNotFoundError: weights that are neither a folder nor to be had from the hub.
        ValueError: weights of another number of classes, or keys that describe no network.
    """
    _require_packages()
    keys = cfg.MODEL.MASK2FORMER
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    if keys.WEIGHTS:
        network = _pretrained(keys.WEIGHTS, classes, replace_classes=keys.REPLACE_CLASSES)
    else:
        network = _by_keys(cfg)
    # The backbone's last norm is not on the way to any loss; data-parallel training stops at such parameters.
    unused = getattr(getattr(network.model.pixel_level_module.encoder, "swin", None), "layernorm", None)
    if unused is not None:
        unused.requires_grad_(False)
    return network


def _require_packages() -> None:
    for name in ("transformers", "scipy"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f'MODEL.META_ARCHITECTURE "MaskAnomalySegmentor" needs the package {name} (extra "mask"): '
                "pip install -c constraints.txt -e '.[mask]'"
            )


def _pretrained(weights: str, classes: int, *, replace_classes: bool) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    try:
        config = Mask2FormerConfig.from_pretrained(weights)
        own = config.num_labels
        if own != classes and not replace_classes:
            raise ValueError(
                f"MODEL.MASK2FORMER.WEIGHTS: {weights} has {own} classes, MODEL.CLASSIFIER.NUM_CLASSES is "
                f"{classes}; set it to {own}, or MODEL.MASK2FORMER.REPLACE_CLASSES to True and train a new "
                "class layer"
            )
        options: dict[str, Any] = {}
        if own != classes:
            options = {"num_labels": classes, "ignore_mismatched_sizes": True}
        network = Mask2FormerForUniversalSegmentation.from_pretrained(weights, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"MODEL.MASK2FORMER.WEIGHTS: {weights!r} is neither a folder with config.json and "
            f"model.safetensors nor a model that the hub gave here ({str(error).splitlines()[0]})"
        ) from error
    if own != classes:
        logger.warning("%s has %d classes: the class layer for %d is untrained", weights, own, classes)
        # The loss keeps a weight per class in a buffer.
        network.criterion.empty_weight.fill_(1.0)
        network.criterion.empty_weight[-1] = network.criterion.eos_coef
    return network


def _by_keys(cfg: CfgNode) -> nn.Module:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
        TimmBackboneConfig,
    )

    keys = cfg.MODEL.MASK2FORMER
    timm: TimmBackbone | None = None
    if keys.BACKBONE == "timm":
        timm = _timm_backbone(cfg)
        backbone = TimmBackboneConfig(
            backbone=cfg.MODEL.TIMM.NAME, out_indices=list(cfg.MODEL.TIMM.OUT_INDICES)
        )
    elif keys.BACKBONE == "swin":
        backbone = SwinConfig(
            embed_dim=keys.SWIN.EMBED_DIM,
            depths=list(keys.SWIN.DEPTHS),
            num_heads=list(keys.SWIN.NUM_HEADS),
            window_size=keys.SWIN.WINDOW_SIZE,
            drop_path_rate=keys.SWIN.DROP_PATH,
            out_features=[f"stage{stage}" for stage in (1, 2, 3, 4)],
        )
    else:
        raise ValueError(f'MODEL.MASK2FORMER.BACKBONE: expected "swin" or "timm", found {keys.BACKBONE!r}')
    dim = keys.HIDDEN_DIM
    if dim < 1 or dim % GROUPS:
        raise ValueError(f"MODEL.MASK2FORMER.HIDDEN_DIM: expected a multiple of {GROUPS}, found {dim}")
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        num_queries=keys.NUM_QUERIES,
        feature_size=dim,
        mask_feature_size=dim,
        hidden_dim=dim,
        # The paper's ratios: 1024 and 2048 at 256.
        encoder_feedforward_dim=4 * dim,
        dim_feedforward=8 * dim,
        encoder_layers=keys.ENCODER_LAYERS,
        # transformers counts the prediction from the untouched queries as a layer.
        decoder_layers=keys.DECODER_LAYERS + 1,
        num_attention_heads=keys.NUM_HEADS,
        train_num_points=keys.TRAIN_POINTS,
    )
    network = Mask2FormerForUniversalSegmentation(config)
    if timm is not None:
        network.model.pixel_level_module.encoder._backbone.load_state_dict(timm.model.state_dict())
    return network


def _timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """The backbone of ``MODEL.TIMM``, with its weights. ValueError unless its strides are 4, 8, 16, 32."""
    keys = cfg.MODEL.TIMM
    backbone = TimmBackbone(
        keys.NAME,
        out_indices=keys.OUT_INDICES,
        weights=keys.WEIGHTS,
        weights_required=keys.WEIGHTS_REQUIRED,
    )
    strides = [shape.stride for shape in backbone.output_shape().values()]
    if strides != [4, 8, 16, 32]:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES: Mask2Former needs features of strides 4, 8, 16 and 32, {keys.NAME} "
            f"gives {', '.join(map(str, strides))} at {list(keys.OUT_INDICES)}"
        )
    return backbone
