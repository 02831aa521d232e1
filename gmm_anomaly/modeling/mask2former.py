"""Mask2Former of the package transformers, by config; the package is imported when a model is built."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from typing import Any

import yaml
from detectron2.config import CfgNode
from torch import nn

from .backbones import TimmBackbone
from .backbones.weights import load_pretrained

KEY = "MODEL.MASK2FORMER.ARCHITECTURE"
STAGES = ["stage1", "stage2", "stage3", "stage4"]

logger = logging.getLogger(__name__)


def build_mask2former(cfg: CfgNode) -> nn.Module:
    """``Mask2FormerForUniversalSegmentation`` (Cheng et al., CVPR 2022) for ``MODEL.CLASSIFIER.NUM_CLASSES``.

    ``MODEL.MASK2FORMER.WEIGHTS`` names the weights, and with them the architecture; without,
    ``MODEL.MASK2FORMER.ARCHITECTURE`` describes a network of random weights, but for those of a timm backbone
    in ``MODEL.BACKBONE.WEIGHTS``.

    Raises:
        ImportError: the extra ``mask`` is not installed.
        FileNotFoundError: weights that are neither a folder nor to be had from the hub.
        ValueError: weights of another number of classes, or an architecture that is none.
    """
    _require_packages()
    keys = cfg.MODEL.MASK2FORMER
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    if keys.WEIGHTS:
        network = _pretrained(keys.WEIGHTS, classes, replace_classes=keys.REPLACE_CLASSES)
    else:
        network = _by_architecture(cfg)
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
                f"pip install {name} (in a checkout pip install -c constraints.txt -e '.[mask]')"
            )


def _pretrained(weights: str, classes: int, *, replace_classes: bool) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    # Without a network it says of each of ten tries why; the error says it once.
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
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
            f"model.safetensors nor a model that the hub gave here ({str(error).splitlines()[0]}). Without a "
            "network: download these two files elsewhere, and set the key to their folder"
        ) from error
    finally:
        hub.setLevel(level)
    if own != classes:
        logger.warning("%s has %d classes: the class layer for %d is untrained", weights, own, classes)
        # The loss keeps a weight per class in a buffer.
        network.criterion.empty_weight.fill_(1.0)
        network.criterion.empty_weight[-1] = network.criterion.eos_coef
    return network


def _by_architecture(cfg: CfgNode) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    arguments: dict[str, Any] = yaml.safe_load(cfg.MODEL.MASK2FORMER.ARCHITECTURE.dump())
    backbone = arguments.get("backbone_config", {"model_type": "swin"})
    _check_names(arguments, backbone)
    timm: TimmBackbone | None = None
    if backbone["model_type"] == "timm_backbone":
        timm = _timm_backbone(cfg, backbone)
    elif cfg.MODEL.BACKBONE.WEIGHTS:
        raise ValueError(
            "MODEL.BACKBONE.WEIGHTS: Mask2Former takes them with ARCHITECTURE.backbone_config.model_type "
            "timm_backbone only"
        )
    else:
        backbone.setdefault("out_features", STAGES)
    try:
        config = Mask2FormerConfig(**arguments, num_labels=cfg.MODEL.CLASSIFIER.NUM_CLASSES)
        network = Mask2FormerForUniversalSegmentation(config)
    except Exception as error:  # whatever transformers raises
        raise ValueError(f"{KEY}: transformers cannot build it: {error}") from error
    if timm is not None:
        network.model.pixel_level_module.encoder._backbone.load_state_dict(timm.model.state_dict())
    return network


def _check_names(arguments: dict[str, Any], backbone: dict[str, Any]) -> None:
    """ValueError: arguments that transformers' configs do not have; it would keep and ignore them."""
    from transformers import CONFIG_MAPPING, Mask2FormerConfig

    kind = backbone.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{KEY}.backbone_config: transformers has no model_type {kind!r}")
    for known, names in ((Mask2FormerConfig, arguments), (CONFIG_MAPPING[kind], backbone)):
        fields = {field.name.removeprefix("_") for field in dataclasses.fields(known)}
        unknown = set(names) - fields - {"model_type", "out_features", "out_indices"}
        if unknown:
            raise ValueError(f"{KEY}: {known.__name__} has no {', '.join(sorted(unknown))}")


def _timm_backbone(cfg: CfgNode, keys: dict[str, Any]) -> TimmBackbone:
    """The backbone with its weights. ValueError unless its strides are 4, 8, 16, 32."""
    indices = keys.get("out_indices", [1, 2, 3, 4])
    backbone = TimmBackbone(keys.get("backbone", ""), out_indices=indices)
    strides = [shape.stride for shape in backbone.output_shape().values()]
    if strides != [4, 8, 16, 32]:
        raise ValueError(
            f"{KEY}: Mask2Former needs features of strides 4, 8, 16 and 32, {backbone.name} gives "
            f"{', '.join(map(str, strides))} at the out_indices {indices}"
        )
    if cfg.MODEL.BACKBONE.WEIGHTS:
        load_pretrained(backbone, cfg)
    return backbone
