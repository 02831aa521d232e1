"""What every decoder gives the segmentor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Decoded(NamedTuple):
    """Pixel features, and the losses of the decoder's own auxiliary heads.

    features: (B, F, h, w). losses: named, weighted scalars; empty at inference and for decoders without
    auxiliary heads.
    """

    features: Tensor
    losses: dict[str, Tensor]
