"""The backbone as it was before training, beside the one that is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .feature_distance import EMBEDDING


class FrozenBackbone(nn.Module):
    """A backbone as it was before training: what training for the known classes does to features is what
    makes unknown things look like them.

    Parts that are frozen anyway are the very same modules in both, and compute what both need once.

    Args:
        backbone: with its pretrained weights. Its frozen modules get another ``forward``.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        shared = _frozen_parts(backbone)
        self.backbone = copy.deepcopy(backbone, {id(module): module for module in shared})
        self.backbone.requires_grad_(False)
        self.shared = [Shared(module) for module in shared]
        for module, forward in zip(shared, self.shared, strict=True):
            module.forward = forward
        self.eval()

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W), normalised -> the pyramid."""
        return self.backbone(images)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, whatever frozen modules made of a tensor is used again, by the other backbone."""
        for module in self.shared:
            module.keeps = True
        try:
            yield
        finally:
            for module in self.shared:
                module.keeps, module.last = False, None

    def stop_sharing(self) -> None:
        """Give the frozen modules back their own ``forward``; what both backbones need is computed twice."""
        for part in self.shared:
            del part.module.forward
        self.shared = []


class Shared:
    """The ``forward`` of a frozen module, which may keep its last result."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.keeps = False
        self.last: tuple[Tensor, Any] | None = None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        alone = len(inputs) == 1 and not options
        if alone and self.last is not None and self.last[0] is inputs[0]:
            return self.last[1]
        output = type(self.module).forward(self.module, *inputs, **options)
        if alone and self.keeps:
            self.last = inputs[0], output
        return output


def _frozen_parts(module: nn.Module) -> list[nn.Module]:
    """The largest modules inside that have parameters and none that is trained."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [part for child in module.children() for part in _frozen_parts(child)]


def build_frozen_backbone(cfg: CfgNode, backbone: Backbone) -> FrozenBackbone | None:
    """The backbone's copy that ``MODEL.FEATURE_DISTANCE`` asks for; None where none is needed: the distances
    are of the trained one or of the embedding alone, or nothing in the backbone is trained."""
    keys = cfg.MODEL.FEATURE_DISTANCE
    if keys.BACKBONE not in ("frozen", "trained"):
        raise ValueError(
            f'MODEL.FEATURE_DISTANCE.BACKBONE: expected "frozen" or "trained", found {keys.BACKBONE!r}'
        )
    if keys.BACKBONE == "trained" or not set(keys.FEATURES) - {EMBEDDING}:
        return None
    return FrozenBackbone(backbone) if any(p.requires_grad for p in backbone.parameters()) else None
