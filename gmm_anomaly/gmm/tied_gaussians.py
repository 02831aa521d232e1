"""Gaussians with a covariance that all of them share: the Mahalanobis distance of a feature.

One a class: Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018,
Eq. 1 and 2. Or any number, found without labels by k-means after whitening.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .collectives import gather_stack, sum_over_ranks
from .mixtures import KeptUntilChanged, UnfittedMixtureError

# Added to the covariance's diagonal, as a share of its mean: keeps directions without variance invertible.
SHRINKAGE = 1e-2


# Bytes that the kept features of a set of statistics may take, and how many there are at most.
KEPT_BYTES, KEPT_FEATURES = 100_000_000, 65536
# A component needs so many of them: fewer features, fewer components.
FEATURES_PER_COMPONENT = 20
LLOYD_ROUNDS = 10
# Rows of a table of distances to all components.
CHUNK = 16384


class TiedGaussianStatistics:
    """Running sufficient statistics, float64: counts, sums, and the second moment of all classes together;
    and some of the features, kept by chance, in whatever order and on whichever rank they are seen.

    Their size does not grow with the number of features seen, and those of several ranks add up.
    """

    def __init__(self, num_classes: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.total = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self.second = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.room = max(1, min(KEPT_FEATURES, KEPT_BYTES // (4 * dim)))
        self._features = [torch.zeros(0, dim, device=device)]
        self._draws = [torch.zeros(0, dtype=torch.float64)]

    def add(self, features: Tensor, labels: Tensor, seed: int = 0) -> None:
        """features: (N, D); labels: (N,) int64, all within the classes; seed: of the draws that decide which
        of these features are kept, such as the number of their image."""
        generator = torch.Generator().manual_seed(seed)
        self._draws.append(torch.rand(len(features), dtype=torch.float64, generator=generator))
        self._features.append(features.float())
        if sum(map(len, self._draws)) > 2 * self.room:
            self.kept()
        features = features.double()
        self.count += torch.bincount(labels, minlength=len(self.count))
        self.total.index_add_(0, labels, features)
        self.second.addmm_(features.T, features)

    def kept(self) -> Tensor:
        """The features with the smallest draws, at most ``room``, in their order: (n, D) float32."""
        draws, order = torch.cat(self._draws).sort(stable=True)
        features = torch.cat(self._features)[order[: self.room].to(self.second.device)]
        self._draws, self._features = [draws[: self.room]], [features]
        return features

    def reduce(self) -> None:
        """Sum over the ranks, and keep the smallest draws of all; collective."""
        for tensor in (self.count, self.total, self.second):
            sum_over_ranks(tensor)
        features = self.kept()
        mine = self._draws[0].to(features.device)
        # Draws are below 1.
        padded = F.pad(mine, (0, self.room - len(mine)), value=1.0)
        draws = gather_stack(padded).flatten().sort().values[: self.room]
        draws = draws[draws < 1]
        mine = mine[torch.isin(mine, draws)]
        together = features.new_zeros(len(draws), features.shape[1])
        together[torch.searchsorted(draws, mine)] = features[: len(mine)]
        self._features, self._draws = [sum_over_ranks(together)], [draws.cpu()]


class TiedGaussians(nn.Module):
    """Gaussians over D dimensions with one covariance, one a class or one a component.

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
        self._kept = KeptUntilChanged()

    @property
    def is_fitted(self) -> bool:
        return self._kept((self.seen,), lambda: bool(self.seen.any()))

    @torch.no_grad()
    def fit(self, statistics: TiedGaussianStatistics) -> None:
        """Means, and the covariance around them shrunk by 1 % of its mean variance towards the identity.

        Statistics of as many classes as there are Gaussians give one a class; one without a feature is left
        out of the distances. Those of a single class give components of the features kept: k-means after
        whitening, with fewer components where there are few features. Deterministic.

        Raises:
            ValueError: statistics of no feature at all.
        """
        count, total = statistics.count, statistics.total
        if not count.any():
            raise ValueError("TiedGaussians.fit: expected features of at least one class, found none")
        # Differences of large squared norms would lose digits in float32.
        centre = total.sum(0) / count.sum()
        means = total / count.clamp(min=1)[:, None]
        covariance = (statistics.second - means.T @ total) / count.sum()
        if len(count) != len(self.seen):
            means, count, covariance = _components(
                statistics.kept().double() - centre, _whitening(covariance), len(self.seen)
            )
            means = means + centre
        whitening = _whitening(covariance)
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


def _whitening(covariance: Tensor) -> Tensor:
    """(D, D) float64 -> the matrix that makes the covariance, shrunk in place, the identity."""
    diagonal = covariance.diagonal()
    diagonal += SHRINKAGE * diagonal.mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False).T


def _components(features: Tensor, whitening: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """k-means (Lloyd, after k-means++) of whitened features.

    Args:
        features: (n, D) float64, centred. whitening: (D, D). room: K, the most components there may be.

    Returns:
        (K, D) means and (K,) counts, 0 for components that are not needed; (D, D) covariance around them.
    """
    wanted = max(1, min(room, len(features) // FEATURES_PER_COMPONENT))
    # Deterministic and good enough to find neighbours in single precision.
    white = (features @ whitening).float()
    norms = white.square().sum(1)
    generator = torch.Generator().manual_seed(0)
    # Each centre is drawn by the distance to those before it, the first by that to the mean.
    centres, nearest = white[:0], norms
    for _ in range(wanted):
        draw = torch.rand((), dtype=torch.float64, generator=generator).item()
        chances = nearest.double().cumsum(0)
        chosen = torch.searchsorted(chances, chances[-1:] * draw).clamp(max=len(white) - 1)
        centres = torch.cat([centres, white[chosen]])
        nearest = torch.minimum(nearest, _squared(white, norms, white[chosen])[:, 0])
    means, count = features.new_zeros(room, features.shape[1]), features.new_zeros(room)
    owner = norms.new_zeros(len(white), dtype=torch.int64)
    for _ in range(LLOYD_ROUNDS):
        for start in range(0, len(white), CHUNK):
            part = slice(start, start + CHUNK)
            owner[part] = _squared(white[part], norms[part], centres).argmin(1)
        count = torch.bincount(owner, minlength=room).to(features.dtype)
        means = torch.zeros_like(means).index_add_(0, owner, features) / count.clamp(min=1)[:, None]
        moved = (means[:wanted] @ whitening).float()
        centres = torch.where(count[:wanted, None] > 0, moved, centres)
    residual = features - means[owner]
    return means, count, residual.T @ residual / len(features)


def _squared(features: Tensor, norms: Tensor, centres: Tensor) -> Tensor:
    """(n, D), their squared norms (n,), (K, D) -> (n, K) squared distances, from 0 up."""
    cross = torch.addmm(centres.square().sum(1), features, centres.T, alpha=-2)
    return (cross + norms[:, None]).clamp_(min=0)
