"""What scores know of the training set: distances of features to what is known."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import TiedGaussians, TiedGaussianStatistics, UnfittedMixtureError
from gmm_anomaly.gmm.mixtures import KeptUntilChanged

from .outlier_head import OutlierHead

# A squared Mahalanobis distance of 0 has no logarithm.
SMALLEST = 1e-3
# The name, beside those of the backbone's features, of what the classifier compares with its classes.
EMBEDDING = "embedding"


class FeatureDistance(nn.Module):
    """Mahalanobis distances on levels of the backbone, frozen or as it was trained, and on the embedding:
    log-distances, standardised on the training set, and their weighted sum over the levels.

    Everything is fitted after training (``gmm_anomaly.engine.feature_distance``); nothing here learns by
    gradient.

    Args:
        shapes: the features to use, by name, with channels and strides.
        num_classes: C.
        components: distances from the nearest of so many Gaussians with one covariance that are found
            without labels; 0: of one a class (Lee et al., NeurIPS 2018). Those of the classes leave
            directions of the embedding unused; a single one measures in these too.
        hybrid_with: what of the classifier the score "hybrid" adds: its "density", where it has one, or the
            "energy" of its logits.
        weights: of the levels in the sum; empty: 1 each.
        outliers: name of an :class:`OutlierHead` on the same levels, "" being none.

    Raises:
        ValueError: another number of weights than of features.
    """

    log_mean: Tensor
    log_std: Tensor

    def __init__(
        self,
        shapes: dict[str, ShapeSpec],
        num_classes: int,
        *,
        components: int = 0,
        hybrid_with: str = "density",
        weights: Sequence[float] = (),
        outliers: str = "",
    ) -> None:
        super().__init__()
        if weights and len(weights) != len(shapes):
            raise ValueError(
                "MODEL.FEATURE_DISTANCE.WEIGHTS: expected a number for each of FEATURES "
                f"({', '.join(shapes)}), or none, found {list(weights)}"
            )
        self.by_class, self.hybrid_with = components == 0, hybrid_with
        self.names = list(shapes)
        self.weights = list(weights) or [1.0] * len(shapes)
        self.finest = min(shapes, key=lambda name: shapes[name].stride)
        means = num_classes if self.by_class else components
        self.levels = nn.ModuleDict()
        for name, shape in shapes.items():
            self.levels[name] = TiedGaussians(means, shape.channels)
        self.outliers = OutlierHead(outliers, shapes) if outliers else None
        # Moments over the training set's labelled pixels: of each level's log-distance, and of what "hybrid"
        # takes from the classifier, so that a score can add what has different units.
        self.register_buffer("log_mean", torch.zeros(len(shapes)))
        self.register_buffer("log_std", torch.zeros(len(shapes)))
        # Under a name of its own, so that moments of the density are missing, and not taken for the energy's.
        self.register_buffer(f"{hybrid_with}_mean", torch.zeros(()))
        self.register_buffer(f"{hybrid_with}_std", torch.zeros(()))
        self._kept = KeptUntilChanged()

    @property
    def is_fitted(self) -> bool:
        stds = self.log_std, self.hybrid_moments[1]
        return self._kept(stds, lambda: bool((stds[0] > 0).all() & (stds[1] > 0)))

    @property
    def hybrid_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, scalars, over the training set of what "hybrid" takes from the
        classifier."""
        return getattr(self, f"{self.hybrid_with}_mean"), getattr(self, f"{self.hybrid_with}_std")

    def require_fitted(self) -> None:
        """Raise UnfittedMixtureError before they are fitted."""
        if not self.is_fitted:
            raise UnfittedMixtureError(
                "the distances of backbone features (MODEL.FEATURE_DISTANCE.FEATURES) are not fitted; fit "
                "them with train_net.py --fit-feature-distance MODEL.WEIGHTS FILE"
            )

    def statistics(self, name: str) -> TiedGaussianStatistics:
        """Empty statistics to fit the level ``name`` from; add them with :meth:`means_of` the labels."""
        means, dim = self.levels[name].whitened_means.shape
        return TiedGaussianStatistics(means if self.by_class else 1, dim, self.log_mean.device)

    def groups(self, labels: Tensor) -> Tensor:
        """labels: (N,) int64 classes -> (N,) int64, the group of the statistics that each belongs to."""
        return labels if self.by_class else torch.zeros_like(labels)

    @torch.no_grad()
    def fit(self, statistics: Mapping[str, TiedGaussianStatistics]) -> None:
        """Fit all levels to statistics of every rank, and measure the log-distances of the features kept.

        Raises:
            ValueError: statistics of no feature at all.
        """
        for index, (name, found) in enumerate(statistics.items()):
            self.levels[name].fit(found)
            distances = torch.cat([self._log_distance(name, part) for part in found.kept().split(16384)])
            self.log_mean[index] = distances.double().mean()
            self.log_std[index] = distances.double().std(correction=0)

    def _log_distance(self, name: str, pixels: Tensor) -> Tensor:
        return self.levels[name].squared_distance(pixels).clamp(min=SMALLEST).log()

    def forward(self, pyramid: dict[str, Tensor], embedding: Tensor | None) -> Tensor:
        """pyramid: {name: (B, F, h, w)}; embedding: (B, D, h, w) -> (B, 1, h', w') float32 at the finest
        level's resolution, in standard deviations, higher = farther.

        Raises:
            UnfittedMixtureError: before they are fitted.
        """
        self.require_fitted()
        features, found = features_by_name(self.names, pyramid, embedding), []
        for index, (name, feature) in enumerate(features.items()):
            distance = self._log_distance(name, _pixels(feature))
            found.append(self.weights[index] * ((distance - self.log_mean[index]) / self.log_std[index]))
        return self._summed(found, features)

    def outlier_ratio(self, pyramid: dict[str, Tensor], embedding: Tensor | None) -> Tensor:
        """Arguments and shape as :meth:`forward`; the log-ratios of :class:`OutlierHead`, summed over the
        levels, in nats. Raises UnfittedMixtureError before they are fitted.
        """
        head = self.outliers
        if head is None or not head.is_fitted:
            raise UnfittedMixtureError(
                "MODEL.OUTLIER: fit it with train_net.py --fit-outliers MODEL.WEIGHTS FILE"
            )
        features, found = features_by_name(self.names, pyramid, embedding), []
        for name, feature in features.items():
            found.append(head.ratio(name, _pixels(feature), self.levels[name]))
        return self._summed(found, features)

    def _summed(self, found: Sequence[Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """found: (B * h * w,), a number for each pixel of a feature -> (B, 1, h', w'), the sum of features at
        the resolution of the finest."""
        size, total = features[self.finest].shape[-2:], 0
        for numbers, feature in zip(found, features.values(), strict=True):
            part = numbers.view(feature.shape[0], 1, *feature.shape[-2:])
            total = total + F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        return total


def _pixels(feature: Tensor) -> Tensor:
    """feature: (B, F, h, w) -> (B * h * w, F)."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def features_by_name(
    names: Iterable[str], pyramid: Mapping[str, Tensor], embedding: Tensor | None
) -> dict[str, Tensor]:
    """The features that distances are measured on, in the order of ``names``."""
    return {name: embedding if name == EMBEDDING else pyramid[name] for name in names}


def build_feature_distance(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> FeatureDistance | None:
    """The module that ``MODEL.FEATURE_DISTANCE`` asks for, from the model's features of these names and
    shapes; None for an empty list of ``FEATURES``."""
    keys = cfg.MODEL.FEATURE_DISTANCE
    levels: dict[str, ShapeSpec] = {}
    for name in keys.FEATURES:
        if name not in shapes:
            raise ValueError(
                "MODEL.FEATURE_DISTANCE.FEATURES: expected some of the model's features "
                f"({', '.join(shapes)}), found {name}"
            )
        levels[name] = shapes[name]
    if not levels:
        if cfg.MODEL.OUTLIER.NAME:
            raise ValueError(
                "MODEL.OUTLIER.NAME: expected features in MODEL.FEATURE_DISTANCE.FEATURES, found none"
            )
        return None
    return FeatureDistance(
        levels,
        cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        components=keys.COMPONENTS,
        hybrid_with=keys.HYBRID_WITH,
        weights=keys.WEIGHTS,
        outliers=cfg.MODEL.OUTLIER.NAME,
    )


class FrozenBackbone(nn.Module):
    """A backbone as it was before training: what training for the known classes does to features is what
    makes unknown things look like them.

    Parts that are frozen anyway are the very same modules in both, and compute what both need once.

    Args:
        backbone: with its pretrained weights. Its frozen modules get another ``forward``.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        shared = _frozen_parts(backbone)
        self.backbone = copy.deepcopy(backbone, {id(module): module for module in shared})
        self.backbone.requires_grad_(False)
        self.shared = [Shared(module) for module in shared]
        for module, forward in zip(shared, self.shared, strict=True):
            module.forward = forward
        self.eval()

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W), normalised -> the pyramid."""
        return self.backbone(images)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, whatever frozen modules made of a tensor is used again, by the other backbone."""
        for module in self.shared:
            module.keeps = True
        try:
            yield
        finally:
            for module in self.shared:
                module.keeps, module.last = False, None

    def stop_sharing(self) -> None:
        """Give the frozen modules back their own ``forward``; what both backbones need is computed twice."""
        for part in self.shared:
            del part.module.forward
        self.shared = []


class Shared:
    """The ``forward`` of a frozen module, which may keep its last result."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.keeps = False
        self.last: tuple[Tensor, Any] | None = None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        alone = len(inputs) == 1 and not options
        if alone and self.last is not None and self.last[0] is inputs[0]:
            return self.last[1]
        output = type(self.module).forward(self.module, *inputs, **options)
        if alone and self.keeps:
            self.last = inputs[0], output
        return output


def _frozen_parts(module: nn.Module) -> list[nn.Module]:
    """The largest modules inside that have parameters and none that is trained."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [part for child in module.children() for part in _frozen_parts(child)]


def build_frozen_backbone(cfg: CfgNode, backbone: Backbone) -> FrozenBackbone | None:
    """The backbone's copy that ``MODEL.FEATURE_DISTANCE`` asks for; None where none is needed: the distances
    are of the trained one or of the embedding alone, or nothing in the backbone is trained."""
    keys = cfg.MODEL.FEATURE_DISTANCE
    if keys.BACKBONE == "trained" or not set(keys.FEATURES) - {EMBEDDING}:
        return None
    return FrozenBackbone(backbone) if any(p.requires_grad for p in backbone.parameters()) else None
