"""Weights of a backbone alone, by torchvision's, timm's or the authors' names: all of them or none."""

from __future__ import annotations

import re
from pathlib import Path

from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from gmm_anomaly.modeling.backbones import MixTransformer, TimmBackbone, VitBackbone
from gmm_anomaly.modeling.backbones.mit_names import official_names
from gmm_anomaly.modeling.backbones.timm_weights import load_timm_state
from gmm_anomaly.modeling.backbones.weights import backbone_tensors, load_complete

from .backbone_names import detectron2_resnet_name

KEY = "MODEL.WEIGHTS"
# What this project adds to pretrained networks: norms of their outputs, a pyramid.
ADDED = ("output_norms.", "simfp_")


def load_backbone(backbone: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Fill everything of ``backbone`` that is ever pretrained; classifiers in ``state`` stay unused.

    Args:
        backbone: of the registry.
        state: torchvision's names, timm's or the authors'.
        source: where the tensors come from, for messages.

    Raises:
        ValueError: another network, or a backbone for which there is no translation. Nothing is loaded then.
    """
    state = backbone_tensors(state)
    if isinstance(backbone, ResNet):
        _check_strides(backbone, source)
        load_complete(backbone, _detectron2_names(state), source, f"the ResNet of {_stages(backbone)}", KEY)
    elif isinstance(backbone, TimmBackbone):
        load_timm_state(backbone.model, backbone.name, state, source, KEY)
    elif isinstance(backbone, VitBackbone):
        load_timm_state(backbone.net.vit, backbone.net.name, state, source, KEY)
    elif isinstance(backbone, MixTransformer):
        load_complete(backbone, official_names(state), source, "the Mix Transformer", KEY)
    else:
        raise ValueError(f"{KEY}: {source} cannot be translated for a {type(backbone).__name__}")


def _detectron2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's and timm's ResNets -> Detectron2's. A deep stem is timm's ``conv1.0`` to ``conv1.6``,
    with the norm of the last convolution as ``bn1``."""
    if "conv1.0.weight" in state:
        state = {
            re.sub(r"^conv1\.", "stem.", re.sub(r"^bn1\.", "stem.7.", name)): value
            for name, value in state.items()
        }
    return {detectron2_resnet_name(name): value for name, value in state.items()}


def _check_strides(backbone: ResNet, source: Path | str) -> None:
    bottlenecks = [stage[0] for stage in backbone.stages if hasattr(stage[0], "conv3")]
    if any(block.conv1.stride != (1, 1) for block in bottlenecks):
        raise ValueError(
            f"{KEY}: {source} has its strides in the 3x3 convolutions, the model in the 1x1 convolutions; "
            "set MODEL.RESNETS.STRIDE_IN_1X1 False"
        )


def _stages(backbone: ResNet) -> str:
    return "-".join(str(len(stage)) for stage in backbone.stages) + " blocks"
