"""The other side of a density: how features of unknown objects are distributed, and the ratio of the two."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import TiedGaussians, TiedGaussianStatistics
from gmm_anomaly.gmm.mixtures import KeptUntilChanged

HEADS = ("gmm", "linear")
# Gaussians of the outliers; 1 to 200 gave the same on three validation sets.
COMPONENTS = 20
# Of the logistic regression: weight of the squared norm, and steps of L-BFGS.
PENALTY, STEPS = 0.03, 40
# Of the ratio's standard deviations, added to the distance in the score "exposed_distance".
EXPOSURE = 0.3


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

    def forward(self, features: Tensor) -> Tensor:
        """features: (N, D) floating point -> (N,) float32."""
        return features.float() @ self.weight + self.bias


class OutlierHead(nn.Module):
    """The log-ratio of two densities on each level that distances are measured on: that of outliers, and that
    of what is known. Fitted to features that are there already; nothing learns by gradient of the network.

    Args:
        name: "gmm": Gaussians with one covariance for the outliers as for what is known; "linear": logistic
            regression of one against the other, which estimates the ratio without either.
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
        self.levels = nn.ModuleDict(
            {
                level: (TiedGaussians(COMPONENTS, n) if name == "gmm" else LogisticRegression(n))
                for level, n in ((level, shape.channels) for level, shape in shapes.items())
            }
        )
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
            if isinstance(level, TiedGaussians):
                level.fit(outliers[name])
            else:
                level.fit(outliers[name].kept(), known[name].kept(), gaussians[name])
            found = torch.cat([self.ratio(name, x, gaussians[name]) for x in known[name].kept().split(16384)])
            self.mean[index] = found.double().mean()
            self.std[index] = found.double().std(correction=0).clamp(min=1e-6)

    def ratio(self, name: str, features: Tensor, gaussians: TiedGaussians) -> Tensor:
        """features: (N, D) of the level ``name`` -> (N,) float32, the outliers' log-density less the largest
        of what is known, in nats."""
        level = self.levels[name]
        if isinstance(level, TiedGaussians):
            return level.log_density(features) - gaussians.log_density(features)
        return level(features)
