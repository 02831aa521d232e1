"""Logits from the angle between pixel features and class prototypes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Temperature 0.1; fixed in PAnS.
COSINE_SCALE = 10.0
# Shorter vectors have no direction.
SHORTEST = 1e-12


def cosine_logits(features: Tensor, prototypes: Tensor) -> Tensor:
    """``10 * cos(feature, prototype)`` (PAnS; Fontanel et al., CVPR workshops 2021), in float32 or float64.

    The unit features never exist as a map: the dot products are divided by the features' lengths.

    Args:
        features: (B, F, h, w) floating point. A zero vector has cosine 0 with everything, and no gradient.
        prototypes: (C, F, 1, 1), of any length.

    Returns:
        (B, C, h, w) in [-10, 10], never in half precision: autocast is switched off.
    """
    with torch.autocast(device_type=features.device.type, enabled=False):
        if features.dtype not in (torch.float32, torch.float64):
            features = features.float()
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        inverse = torch.where(length > SHORTEST, 1 / length.clamp(min=SHORTEST), 0.0)
        directions = F.normalize(prototypes, dim=1).to(features.dtype)
        return COSINE_SCALE * F.conv2d(features, directions) * inverse


class CosinePrototypes(nn.Module):
    """Learned prototypes, one a class: :func:`cosine_logits` as a layer.

    Args:
        in_channels: F. num_classes: C.

    Attributes:
        weight: (C, F, 1, 1), the prototypes; only their directions matter.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels, 1, 1))
        # As a 1x1 convolution without bias starts.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, F, h, w) -> logits (B, C, h, w)."""
        return cosine_logits(features, self.weight)
