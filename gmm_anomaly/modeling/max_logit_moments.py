"""How large the largest logit of each predicted class is on the training set (for the score "sml")."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnfittedMomentsError(RuntimeError):
    """Moments of the training set were asked for before they were measured."""


class MaxLogitMoments(nn.Module):
    """Mean and standard deviation of the largest logit, for each predicted class.

    Attributes:
        mean, std: (C,) float32; zero until measured (``gmm_anomaly.engine.feature_distance``).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes))
        self.register_buffer("std", torch.zeros(num_classes))

    @torch.no_grad()
    def fit(self, count: Tensor, total: Tensor, square: Tensor) -> None:
        """Set the moments; a class that is hardly ever predicted, or always alike, gets those of all pixels.

        Args:
            count, total, square: (C,) float64: pixels predicted as each class, sum of their largest logits
                and of the squares of these.

        Raises:
            ValueError: no pixel at all, or all with the same largest logit.
        """
        overall = [part.sum() for part in (count, total, square)]
        mean, std = _moments(*overall)
        if not float(overall[0]) or not float(std) > 0:
            raise ValueError(
                "the moments of the largest logit need labelled training pixels with different logits, found "
                f"{int(overall[0])} pixels with a standard deviation of {float(std):g}"
            )
        own_mean, own_std = _moments(count, total, square)
        usable = (count >= 2) & (own_std > 0)
        self.mean.copy_(torch.where(usable, own_mean, mean))
        self.std.copy_(torch.where(usable, own_std, std))

    def require_fitted(self) -> None:
        """Raise UnfittedMomentsError before :meth:`fit`."""
        if not bool((self.std > 0).all()):
            raise UnfittedMomentsError(
                'the score "sml" needs moments of the training set that were not measured yet: run '
                "train_net.py --fit-feature-distance MODEL.WEIGHTS FILE with it in TEST.SCORES"
            )


def _moments(count: Tensor, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation, as the released code of Standardized Max Logits computes it."""
    mean = total / count.clamp(min=1)
    return mean, ((square - count * mean.square()) / (count - 1).clamp(min=1)).clamp(min=0).sqrt()
