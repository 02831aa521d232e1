"""What names in a config stand for: registries of decoders and classifiers, and norm layers."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.utils.logger import log_first_n
from fvcore.common.registry import Registry

from gmm_anomaly.gmm.collectives import world_size

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


def usable_norm(name: str, device: str) -> str:
    """``name``, or "BN" where "SyncBN" cannot work; one line in the log says so.

    Synchronised batch norm exists on GPUs only, and has nothing to do in a run of one process. Ask once the
    process group stands.
    """
    if name != "SyncBN":
        return name
    if not device.startswith("cuda"):
        why = f"SyncBN needs GPUs; on {device} BN is used instead, with statistics of each process's own"
    elif world_size() == 1:
        why = "SyncBN needs several processes; in this one BN is used instead"
    else:
        return name
    log_first_n(logging.WARNING, why, key="message")
    return "BN"
