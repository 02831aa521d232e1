"""Registries of decoders and classifiers, and look-ups that name what is known."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry

DECODER_REGISTRY: Registry = Registry("DECODER")
DECODER_REGISTRY.__doc__ = """
Builders ``(cfg, {name: ShapeSpec}) -> nn.Module``. A decoder has ``in_features``, ``out_channels`` and
``out_stride``; ``forward({name: (B, F, h, w)}, labels=None) -> Decoded`` gives pixel features
``(B, out_channels, h', w')`` and, while training with labels (B, H, W), the losses of its auxiliary heads.
"""

CLASSIFIER_REGISTRY: Registry = Registry("CLASSIFIER")
CLASSIFIER_REGISTRY.__doc__ = """
Builders ``(cfg, in_channels) -> PixelClassifier``; the builder's name is that of ``MODEL.CLASSIFIER.NAME``.
"""


def look_up(registry: Registry, name: str, key: str) -> Any:
    """The registered object, or a ValueError that names the config key and what is known."""
    if name not in registry:
        known = ", ".join(sorted(entry for entry, _ in registry))
        raise ValueError(f"{key}: unknown name {name!r}; known are {known}")
    return registry.get(name)
