"""One Gaussian per class with a covariance that all classes share: the Mahalanobis distance of a feature.

Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018, Eq. 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .collectives import sum_over_ranks
from .density import UnfittedMixtureError

# Added to the covariance's diagonal, as a share of its mean: keeps directions without variance invertible.
SHRINKAGE = 1e-2


class TiedGaussianStatistics:
    """Running sufficient statistics, float64: counts, sums, and the second moment of all classes together.

    Their size does not grow with the number of features seen, and those of several ranks add up.
    """

    def __init__(self, num_classes: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.total = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self.second = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features: (N, D); labels: (N,) int64, all within the classes."""
        features = features.double()
        self.count += torch.bincount(labels, minlength=len(self.count))
        self.total.index_add_(0, labels, features)
        self.second.addmm_(features.T, features)

    def reduce(self) -> None:
        """Sum over the ranks; collective."""
        for tensor in (self.count, self.total, self.second):
            sum_over_ranks(tensor)


class TiedGaussians(nn.Module):
    """C Gaussians over D dimensions with one covariance.

    Distances are Euclidean ones after whitening: two matrix products, and no (N, C, D) tensor.
    """

    centre: Tensor
    whitening: Tensor
    whitened_means: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("whitening", torch.zeros(dim, dim))
        self.register_buffer("whitened_means", torch.zeros(num_classes, dim))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @property
    def is_fitted(self) -> bool:
        return bool(self.seen.any())

    @torch.no_grad()
    def fit(self, statistics: TiedGaussianStatistics) -> None:
        """Means, and within-class covariance shrunk by 1 % of its mean variance towards the identity.

        A class without a feature is left out of the distances.

        Raises:
            ValueError: statistics of no feature at all.
        """
        count, total = statistics.count, statistics.total
        if not count.any():
            raise ValueError("TiedGaussians.fit: expected features of at least one class, found none")
        means = total / count.clamp(min=1)[:, None]
        covariance = (statistics.second - means.T @ total) / count.sum()
        diagonal = covariance.diagonal()
        diagonal += SHRINKAGE * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T
        # Differences of large squared norms would lose digits in float32.
        centre = total.sum(0) / count.sum()
        self.centre.copy_(centre)
        self.whitening.copy_(whitening)
        self.whitened_means.copy_((means - centre) @ whitening)
        self.seen.copy_(count > 0)

    def squared_distance(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distance to the nearest class.

        Args:
            features: (N, D) floating point.

        Returns:
            (N,) float32.

        Raises:
            UnfittedMixtureError: before :meth:`fit`.
        """
        if not self.is_fitted:
            raise UnfittedMixtureError("TiedGaussians: not fitted; call fit() with statistics of features")
        with torch.autocast(device_type=features.device.type, enabled=False):
            whitened = (features.float() - self.centre) @ self.whitening
            norms = self.whitened_means.square().sum(1).masked_fill(~self.seen, torch.inf)
            cross = torch.addmm(norms, whitened, self.whitened_means.T, alpha=-2)
            return (whitened.square().sum(1) + cross.amin(1)).clamp_(min=0)
