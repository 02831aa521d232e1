"""Fitted parts as constants: the numbers of inference without what an exporter cannot follow.

The modules of ``gmm_anomaly.modeling`` ask at every call whether they are fitted, work in chunks of pixels
and rebuild their tables. All of that is settled once a model is trained, so it is done here when a model is
frozen, and the graph holds matrix products only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import UnfittedMixtureError
from gmm_anomaly.gmm.density import EXCLUDED, DensityTable, class_log_density_of
from gmm_anomaly.modeling.classifiers import (
    GMMClassifier,
    PixelClassifier,
    PrototypeClassifier,
    RunningMeanPrototypes,
)
from gmm_anomaly.modeling.cosine import COSINE_SCALE, SHORTEST
from gmm_anomaly.modeling.feature_distance import SMALLEST, FeatureDistance, features_by_name
from gmm_anomaly.scores import PixelOutputs


class FrozenMixtures(nn.Module):
    """A :class:`GMMClassifier` in evaluation mode: pixel features to logits and class log-densities.

    Classes that were never fitted are left out.

    Raises:
        UnfittedMixtureError: mixtures that were never fitted.
    """

    linear: Tensor
    quadratic: Tensor
    constant: Tensor
    known: Tensor

    def __init__(self, classifier: GMMClassifier) -> None:
        super().__init__()
        bank = classifier.bank
        if not bank.is_fitted:
            raise UnfittedMixtureError(
                "the Gaussian mixtures have never been fitted, so there is nothing to export: give the "
                "checkpoint of a trained gmm model"
            )
        self.reduction = bank.reduction
        self.dim, self.classes, self.components = bank.dim, bank.num_classes, bank.num_components
        self.project, self.feature_norm = classifier.project, classifier.feature_norm
        self.guide = classifier.guide if classifier.logits_from == "softmax" else None
        table = DensityTable(bank.unit_means, bank.scales)
        # A component that was never fitted takes no part; a whole class of them keeps the constant EXCLUDED.
        constant = table.constant.masked_fill(~bank.fitted.flatten(), -torch.inf)
        known = bank.known_classes
        of_known = known.repeat_interleave(self.components)
        self.register_buffer("constant", constant[of_known])
        self.register_buffer("linear", table.linear[:, of_known])
        self.register_buffer("quadratic", table.quadratic[:, of_known])
        self.register_buffer("known", known.nonzero()[:, 0])
        norm = classifier.class_norm
        self.class_norm = nn.LayerNorm(len(self.known), eps=norm.eps)
        self.class_norm.weight = nn.Parameter(norm.weight.detach()[known])
        self.class_norm.bias = nn.Parameter(norm.bias.detach()[known])

    def forward(self, features: Tensor) -> PixelOutputs:
        """features: (B, F, h, w) -> maps (B, C, h, w) float32."""
        projected = self.project(features).float()
        batch, _, height, width = projected.shape
        pixels = projected.permute(0, 2, 3, 1).reshape(-1, self.dim)
        pixels = F.normalize(self.feature_norm(pixels), dim=1)
        density = class_log_density_of(
            pixels, self.constant, self.linear, self.quadratic, self.components, self.reduction
        ).contiguous()
        maps = [
            self._all_classes(values).view(batch, height, width, self.classes).permute(0, 3, 1, 2)
            for values in (self.class_norm(density), density)
        ]
        maps.append(pixels.view(batch, height, width, self.dim).permute(0, 3, 1, 2))
        if self.guide is not None:
            maps[0] = self.guide(features).logits
        return PixelOutputs(*maps)

    def _all_classes(self, of_known: Tensor) -> Tensor:
        if len(self.known) == self.classes:
            return of_known
        index = self.known.expand(of_known.shape[0], -1)
        return of_known.new_full((of_known.shape[0], self.classes), EXCLUDED).scatter(1, index, of_known)


class FrozenPrototypes(nn.Module):
    """A :class:`PrototypeClassifier` in evaluation mode: ten times the cosine to each class's direction."""

    directions: Tensor
    missing: Tensor

    def __init__(self, classifier: PrototypeClassifier) -> None:
        super().__init__()
        predictor = classifier.predictor
        self.register_buffer("directions", F.normalize(predictor.weight.detach().float(), dim=1))
        missing = torch.zeros(len(predictor.weight), dtype=torch.bool)
        if isinstance(predictor, RunningMeanPrototypes):
            # Raises where none is fitted.
            predictor(predictor.weight.new_zeros(1, predictor.weight.shape[1], 1, 1))
            missing = ~predictor.fitted
        self.register_buffer("missing", missing[:, None, None])

    def forward(self, features: Tensor) -> PixelOutputs:
        """features: (B, F, h, w) -> logits (B, C, h, w) float32."""
        features = features.float()
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        inverse = torch.where(length > SHORTEST, 1 / length.clamp(min=SHORTEST), 0.0)
        logits = COSINE_SCALE * F.conv2d(features, self.directions) * inverse
        return PixelOutputs(logits.masked_fill(self.missing, -COSINE_SCALE), embedding=features)


class FrozenDistance(nn.Module):
    """A fitted :class:`FeatureDistance`.

    Raises:
        UnfittedMixtureError: before calibration.
    """

    def __init__(self, distance: FeatureDistance) -> None:
        super().__init__()
        distance.require_fitted()
        self.names = list(distance.names)
        self.finest = distance.finest
        for index, name in enumerate(self.names):
            level = distance.levels[name]
            norms = level.whitened_means.square().sum(1).masked_fill(~level.seen, torch.inf)
            for part, tensor in (
                ("centre", level.centre),
                ("whitening", level.whitening),
                ("means", level.whitened_means.T.contiguous()),
                ("norms", norms),
                ("mean", distance.log_mean[index]),
                ("std", distance.log_std[index]),
            ):
                self.register_buffer(f"{part}_{index}", tensor.detach().clone())

    def forward(self, pyramid: dict[str, Tensor], embedding: Tensor | None) -> Tensor:
        """pyramid: {name: (B, F, h, w)}; embedding: (B, D, h, w) -> (B, 1, h', w') float32."""
        features = features_by_name(self.names, pyramid, embedding)
        size = features[self.finest].shape[-2:]
        total = None
        for index, feature in enumerate(features.values()):
            standard = self._standard(index, feature)
            resized = F.interpolate(standard, size=size, mode="bilinear", align_corners=False)
            total = resized if total is None else total + resized
        return total

    def _standard(self, index: int, feature: Tensor) -> Tensor:
        def of(part: str) -> Tensor:
            return getattr(self, f"{part}_{index}")

        batch, channels, height, width = feature.shape
        pixels = feature.float().permute(0, 2, 3, 1).reshape(-1, channels)
        whitened = (pixels - of("centre")) @ of("whitening")
        cross = torch.addmm(of("norms"), whitened, of("means"), alpha=-2)
        squared = (whitened.square().sum(1) + cross.amin(1)).clamp(min=SMALLEST)
        return ((squared.log() - of("mean")) / of("std")).view(batch, 1, height, width)


def freeze_classifier(classifier: PixelClassifier) -> nn.Module:
    """The classifier with everything that training settled as constants."""
    if isinstance(classifier, GMMClassifier):
        return FrozenMixtures(classifier)
    if isinstance(classifier, PrototypeClassifier):
        return FrozenPrototypes(classifier)
    return classifier
