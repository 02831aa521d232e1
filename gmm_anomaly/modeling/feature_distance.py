"""How far a pixel's features lie from those of the known classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import TiedGaussians, TiedGaussianStatistics, UnfittedMixtureError

# A squared Mahalanobis distance of 0 has no logarithm.
SMALLEST = 1e-3
# The name, beside those of the backbone's features, of what the classifier compares with its classes.
EMBEDDING = "embedding"


class FeatureDistance(nn.Module):
    """Mahalanobis distances on levels of the backbone, which training for the known classes bends less than
    the embedding, and on the embedding: log-distances, standardised on the training set, summed over the
    levels.

    Everything is fitted after training (``gmm_anomaly.engine.calibration``), nothing here learns by gradient.

    Args:
        shapes: the features to use, by name, with channels and strides.
        num_classes: C.
        gaussians: distances from the nearest of "class" Gaussians, one a class with one covariance (Lee et
            al., NeurIPS 2018), or from a "single" Gaussian of all known pixels. The known classes' features
            leave directions of the embedding unused, and the single one measures in these too.
        evidence: what of the classifier the score "hybrid" adds: its "density", where it has one, or the
            "energy" of its logits.
    """

    log_mean: Tensor
    log_std: Tensor

    def __init__(
        self,
        shapes: dict[str, ShapeSpec],
        num_classes: int,
        *,
        gaussians: str = "class",
        evidence: str = "density",
    ) -> None:
        super().__init__()
        if gaussians not in ("class", "single"):
            raise ValueError(
                f'MODEL.FEATURE_DISTANCE.GAUSSIANS: expected "class" or "single", found {gaussians!r}'
            )
        if evidence not in ("density", "energy"):
            raise ValueError(
                f'MODEL.FEATURE_DISTANCE.EVIDENCE: expected "density" or "energy", found {evidence!r}'
            )
        self.single, self.evidence = gaussians == "single", evidence
        self.names = list(shapes)
        self.finest = min(shapes, key=lambda name: shapes[name].stride)
        means = 1 if self.single else num_classes
        self.levels = nn.ModuleDict(
            {name: TiedGaussians(means, shape.channels) for name, shape in shapes.items()}
        )
        # Moments over the training set's labelled pixels: of each level's log-distance, and of the
        # classifier's own evidence, so that a score can add what has different units.
        self.register_buffer("log_mean", torch.zeros(len(shapes)))
        self.register_buffer("log_std", torch.zeros(len(shapes)))
        # Under a name of its own, so that moments of the density are missing, and not taken for the energy's.
        self._moments = "energy" if evidence == "energy" else "evidence"
        self.register_buffer(f"{self._moments}_mean", torch.zeros(()))
        self.register_buffer(f"{self._moments}_std", torch.zeros(()))

    @property
    def is_fitted(self) -> bool:
        return bool((self.log_std > 0).all() and self.evidence_moments()[1] > 0)

    def evidence_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, scalars, of the classifier's evidence over the training set."""
        return getattr(self, f"{self._moments}_mean"), getattr(self, f"{self._moments}_std")

    def require_fitted(self) -> None:
        """Raise UnfittedMixtureError before calibration."""
        if not self.is_fitted:
            raise UnfittedMixtureError(
                "the distances of backbone features (MODEL.FEATURE_DISTANCE.FEATURES) are not fitted; fit "
                "them with train_net.py --calibrate MODEL.WEIGHTS FILE"
            )

    def statistics(self, name: str) -> TiedGaussianStatistics:
        """Empty statistics to fit the level ``name`` from; add them with :meth:`means_of` the labels."""
        means, dim = self.levels[name].whitened_means.shape
        return TiedGaussianStatistics(means, dim, self.log_mean.device)

    def means_of(self, labels: Tensor) -> Tensor:
        """labels: (N,) int64 classes -> (N,) int64, the Gaussian that each belongs to."""
        return torch.zeros_like(labels) if self.single else labels

    def log_distance(self, name: str, feature: Tensor) -> Tensor:
        """feature: (B, F, h, w) of the level ``name`` -> (B, h, w) float32 log squared distances."""
        batch, channels, height, width = feature.shape
        pixels = feature.permute(0, 2, 3, 1).reshape(-1, channels)
        distance = self.levels[name].squared_distance(pixels)
        return distance.clamp(min=SMALLEST).log().view(batch, height, width)

    def forward(self, pyramid: dict[str, Tensor], embedding: Tensor | None) -> Tensor:
        """pyramid: {name: (B, F, h, w)}; embedding: (B, D, h, w) -> (B, 1, h', w') float32 at the finest
        level's resolution, in standard deviations, higher = farther.

        Raises:
            UnfittedMixtureError: before calibration.
        """
        self.require_fitted()
        features = features_by_name(self.names, pyramid, embedding)
        size = features[self.finest].shape[-2:]
        total = 0
        for index, (name, feature) in enumerate(features.items()):
            standard = (self.log_distance(name, feature) - self.log_mean[index]) / self.log_std[index]
            total = total + F.interpolate(standard[:, None], size=size, mode="bilinear", align_corners=False)
        return total


def features_by_name(
    names: Iterable[str], pyramid: Mapping[str, Tensor], embedding: Tensor | None
) -> dict[str, Tensor]:
    """The features that distances are measured on, in the order of ``names``."""
    return {name: embedding if name == EMBEDDING else pyramid[name] for name in names}


def feature_shapes(
    backbone: Mapping[str, ShapeSpec], out_stride: int, embedding_channels: int | None
) -> dict[str, ShapeSpec]:
    """Shapes of all features that distances can be measured on, by name.

    Args:
        backbone: its features. out_stride: of the decoder. embedding_channels: of the classifier; None: it
            has no embedding.
    """
    if embedding_channels is None:
        return dict(backbone)
    return {**backbone, EMBEDDING: ShapeSpec(channels=embedding_channels, stride=out_stride)}


def build_feature_distance(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> FeatureDistance | None:
    """The module that ``MODEL.FEATURE_DISTANCE`` asks for, from what :func:`feature_shapes` offers; None for
    an empty list of ``FEATURES``."""
    keys = cfg.MODEL.FEATURE_DISTANCE
    names: Sequence[str] = keys.FEATURES
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(
            "MODEL.FEATURE_DISTANCE.FEATURES: expected some of the model's features "
            f"({', '.join(shapes)}), found {', '.join(unknown)}"
        )
    if not names:
        return None
    return FeatureDistance(
        {name: shapes[name] for name in names},
        cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        gaussians=keys.GAUSSIANS,
        evidence=keys.EVIDENCE,
    )
