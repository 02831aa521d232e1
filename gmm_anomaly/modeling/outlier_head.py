"""The other side of a density: how features of unknown objects are distributed, and the ratio of the two."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import (
    GaussianMixtureBank,
    GaussianMixtures,
    TiedGaussians,
    TiedGaussianStatistics,
    own_class_log_prob,
    sinkhorn_assign_all,
)
from gmm_anomaly.gmm.collectives import rank
from gmm_anomaly.gmm.mixtures import KeptUntilChanged

HEADS = ("gmm", "linear")
# Of the mixtures, chosen on three validation sets: components of each side, variance that is added, and the
# length of the axis in standard deviations of a feature.
COMPONENTS, VARIANCE_FLOOR, AXIS = 20, 3e-3, 3.0
# Features of each side, rounds of EM, and features that k-means starts from.
FEATURES, ROUNDS, START = 10_000, 5, 2000
# Of the logistic regression: weight of the squared norm, and steps of L-BFGS.
PENALTY, STEPS = 0.03, 40
# Of the ratio's standard deviations, added to the distance in the score "exposed_distance".
EXPOSURE = 0.3


class OutlierMixtures(nn.Module):
    """Mixtures of outliers and of what is known: two classes of a :class:`GaussianMixtureBank` (UEM, IJCV
    2025).

    The bank lives on the unit sphere. Features get there whitened, with an axis of one length beside them:
    the farther out a feature lies, the farther its direction is from the axis.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixtures = GaussianMixtures(2, COMPONENTS, dim + 1)

    @torch.no_grad()
    def fit(self, outliers: Tensor, known: Tensor, gaussians: TiedGaussians) -> None:
        """EM as in training, but for means that are replaced in each round. Deterministic. Collective: every
        rank has the same features, the first one brings them.

        Args:
            outliers, known: (n, D) and (m, D) float32, in any order that is random. gaussians: of what is
                known; they whiten.
        """
        sides = [self._on_sphere(side[:FEATURES], gaussians) for side in (known, outliers)]
        labels = torch.cat([torch.full((len(side),), index) for index, side in enumerate(sides)])
        features, labels = torch.cat(sides), labels.to(known.device)
        room = 2 * len(features) // COMPONENTS + 1
        if rank() > 0:
            features, labels = features[:0], labels[:0]
        bank = GaussianMixtureBank(
            2,
            COMPONENTS,
            features.shape[1],
            memory_size=room,
            samples_per_update=room,
            momentum_mean=0.0,
            variance_floor=VARIANCE_FLOOR,
            warm_start_features=min(START, *map(len, sides)),
        ).to(features.device)
        for _ in range(ROUNDS):
            own = own_class_log_prob(bank.log_prob(features), labels)
            assignment, _ = sinkhorn_assign_all(own, labels, 2)
            bank.record(features, labels, assignment, torch.ones_like(labels, dtype=torch.bool))
            bank.update()
        for name, buffer in self.mixtures.named_buffers():
            buffer.copy_(bank.get_buffer(name))

    def _on_sphere(self, features: Tensor, gaussians: TiedGaussians) -> Tensor:
        white = (features.float() - gaussians.centre) @ gaussians.whitening
        return F.normalize(F.pad(white, (0, 1), value=AXIS * white.shape[1] ** 0.5), dim=1)

    def forward(self, features: Tensor, gaussians: TiedGaussians) -> Tensor:
        """features: (N, D) floating point; gaussians: those of :meth:`fit` -> (N,) float32."""
        known, outliers = self.mixtures.class_log_density(self._on_sphere(features, gaussians)).unbind(1)
        return outliers - known


class LogisticRegression(nn.Module):
    """Log-odds of "outlier" as a linear function of a feature."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim))
        self.register_buffer("bias", torch.zeros(()))

    def fit(self, outliers: Tensor, known: Tensor, gaussians: TiedGaussians) -> None:
        """Both sides weigh the same, so that the log-odds are a log-ratio of densities. Deterministic.

        Args:
            outliers, known: (n, D) and (m, D) float32. gaussians: of what is known; features are whitened by
                them, so that the penalty treats all directions alike.
        """
        sides = [(x - gaussians.centre) @ gaussians.whitening for x in (known, outliers)]
        theta = gaussians.centre.new_zeros(len(self.weight) + 1).requires_grad_()
        optimizer = torch.optim.LBFGS([theta], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            odds = [side @ theta[:-1] + theta[-1] for side in sides]
            total = 0.5 * (F.softplus(odds[0]).mean() + F.softplus(-odds[1]).mean())
            total = total + PENALTY * theta[:-1].square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            optimizer.step(loss)
        theta = theta.detach()
        weight = gaussians.whitening @ theta[:-1]
        self.weight.copy_(weight)
        self.bias.copy_(theta[-1] - gaussians.centre @ weight)

    def forward(self, features: Tensor, _gaussians: TiedGaussians) -> Tensor:
        """features: (N, D) floating point -> (N,) float32."""
        return features.float() @ self.weight + self.bias


class OutlierHead(nn.Module):
    """The log-ratio of two densities on each level that distances are measured on: that of outliers, and that
    of what is known. Fitted to features that are there already; nothing learns by gradient of the network.

    Args:
        name: "gmm": :class:`OutlierMixtures`; "linear": logistic regression of outliers against what is
            known, which estimates the ratio without either density.
        shapes: of each level, by name.

    Raises:
        ValueError: another name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, shapes: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        if name not in HEADS:
            raise ValueError(f'MODEL.OUTLIER.NAME: expected "gmm", "linear" or "" (none), found {name!r}')
        kind = OutlierMixtures if name == "gmm" else LogisticRegression
        self.levels = nn.ModuleDict({level: kind(shape.channels) for level, shape in shapes.items()})
        # Over known cells.
        self.register_buffer("mean", torch.zeros(len(shapes)))
        self.register_buffer("std", torch.zeros(len(shapes)))
        self._kept = KeptUntilChanged()

    @property
    def is_fitted(self) -> bool:
        return self._kept((self.std,), lambda: bool((self.std > 0).all()))

    @property
    def moments(self) -> tuple[Tensor, Tensor, float]:
        """Mean, and sum of the levels' standard deviations, of the ratio over what is known; its weight."""
        return self.mean.sum(), self.std.sum(), EXPOSURE

    @torch.no_grad()
    def fit(
        self,
        gaussians: Mapping[str, TiedGaussians],
        outliers: Mapping[str, TiedGaussianStatistics],
        known: Mapping[str, TiedGaussianStatistics],
    ) -> None:
        """gaussians: of what is known, by level; outliers, known: statistics of every rank, of one class.

        Raises:
            ValueError: no outlier at all.
        """
        for index, (name, level) in enumerate(self.levels.items()):
            if not outliers[name].count.any() or not known[name].count.any():
                raise ValueError(
                    f"MODEL.OUTLIER: no cell of {name} lies inside a pasted object, or none outside; "
                    "expected larger objects (INPUT.OUTLIERS.HEIGHTS) or other ones (INPUT.OUTLIERS.SOURCE)"
                )
            level.fit(outliers[name].kept(), known[name].kept(), gaussians[name])
            found = torch.cat([self.ratio(name, x, gaussians[name]) for x in known[name].kept().split(16384)])
            self.mean[index] = found.double().mean()
            self.std[index] = found.double().std(correction=0).clamp(min=1e-6)

    def ratio(self, name: str, features: Tensor, gaussians: TiedGaussians) -> Tensor:
        """features: (N, D) of the level ``name`` -> (N,) float32, the outliers' log-density less the largest
        of what is known, in nats."""
        return self.levels[name](features, gaussians)
