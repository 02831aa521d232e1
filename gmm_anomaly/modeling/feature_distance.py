"""What scores know of the training set: distances of features to what is known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        self.weights = [float(weight) for weight in weights] or [1.0] * len(shapes)
        self.finest = min(shapes, key=lambda name: shapes[name].stride)
        means = num_classes if self.by_class else components
        self.levels = nn.ModuleDict(
            {name: TiedGaussians(means, shape.channels) for name, shape in shapes.items()}
        )
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
        return self._kept(stds, lambda: all(bool((std > 0).all()) for std in stds))

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

    def log_distance(self, name: str, feature: Tensor) -> Tensor:
        """feature: (B, F, h, w) of the level ``name`` -> (B, h, w) float32 log squared distances."""
        return _by_pixels(lambda pixels: self._log_distance(name, pixels), feature)

    def forward(self, pyramid: dict[str, Tensor], embedding: Tensor | None) -> Tensor:
        """pyramid: {name: (B, F, h, w)}; embedding: (B, D, h, w) -> (B, 1, h', w') float32 at the finest
        level's resolution, in standard deviations, higher = farther.

        Raises:
            UnfittedMixtureError: before they are fitted.
        """
        self.require_fitted()

        def standard(name: str, feature: Tensor) -> Tensor:
            index = self.names.index(name)
            found = (self.log_distance(name, feature) - self.log_mean[index]) / self.log_std[index]
            return self.weights[index] * found

        return self._summed(standard, pyramid, embedding)

    def outlier_ratio(self, pyramid: dict[str, Tensor], embedding: Tensor | None) -> Tensor:
        """Arguments and shape as :meth:`forward`; the log-ratios of :class:`OutlierHead`, summed over the
        levels, in nats. Raises UnfittedMixtureError before they are fitted.
        """
        head = self.outliers
        if head is None or not head.is_fitted:
            raise UnfittedMixtureError(
                "MODEL.OUTLIER: fit it with train_net.py --fit-outliers MODEL.WEIGHTS FILE"
            )

        def ratio(name: str, feature: Tensor) -> Tensor:
            return _by_pixels(lambda x: head.ratio(name, x, self.levels[name]), feature)

        return self._summed(ratio, pyramid, embedding)

    def _summed(
        self, map_of: Callable[[str, Tensor], Tensor], pyramid: dict[str, Tensor], embedding: Tensor | None
    ) -> Tensor:
        features = features_by_name(self.names, pyramid, embedding)
        size = features[self.finest].shape[-2:]
        maps = (map_of(name, feature)[:, None] for name, feature in features.items())
        return sum(F.interpolate(part, size=size, mode="bilinear", align_corners=False) for part in maps)


def _by_pixels(function: Callable[[Tensor], Tensor], feature: Tensor) -> Tensor:
    """A function from (N, F) to (N,), of every pixel of a feature: (B, F, h, w) -> (B, h, w)."""
    batch, channels, height, width = feature.shape
    return function(feature.permute(0, 2, 3, 1).reshape(-1, channels)).view(batch, height, width)


def features_by_name(
    names: Iterable[str], pyramid: Mapping[str, Tensor], embedding: Tensor | None
) -> dict[str, Tensor]:
    """The features that distances are measured on, in the order of ``names``."""
    return {name: embedding if name == EMBEDDING else pyramid[name] for name in names}


def build_feature_distance(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> FeatureDistance | None:
    """The module that ``MODEL.FEATURE_DISTANCE`` asks for, from the model's features of these names and
    shapes; None for an empty list of ``FEATURES``."""
    keys = cfg.MODEL.FEATURE_DISTANCE
    names: Sequence[str] = keys.FEATURES
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(
            "MODEL.FEATURE_DISTANCE.FEATURES: expected some of the model's features "
            f"({', '.join(shapes)}), found {', '.join(unknown)}"
        )
    if not names:
        if cfg.MODEL.OUTLIER.NAME:
            raise ValueError(
                "MODEL.OUTLIER.NAME: expected features in MODEL.FEATURE_DISTANCE.FEATURES, found none"
            )
        return None
    return FeatureDistance(
        {name: shapes[name] for name in names},
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
