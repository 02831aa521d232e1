"""The score of a cosine classifier: angle to the nearest prototype."""

from __future__ import annotations

from torch import Tensor

from .outputs import PixelOutputs
from .registry import register_score

# Logits are 10 * cosine in PAnS.
SCALE = 10.0


@register_score("prototype_distance")
def prototype_distance(outputs: PixelOutputs) -> Tensor:
    """``1 - (max_c z_c + 10) / 20`` (PAnS; Fontanel et al., CVPR workshops 2021).

    Half of one minus the largest cosine: in [0, 1] on the logits of a cosine classifier. On any others it
    ranks pixels as max_logit does.
    """
    return 1 - (outputs.logits.amax(dim=-3) + SCALE) / (2 * SCALE)
