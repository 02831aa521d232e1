"""What a pixel classifier gives a score to work on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PixelOutputs:
    """Outputs of a pixel classifier.

    Attributes:
        logits: (..., C, H, W) float32 class logits.
        log_density: (..., C, H, W) float32 class log-densities in nats, where the classifier is generative.
    """

    logits: Tensor
    log_density: Tensor | None = None
