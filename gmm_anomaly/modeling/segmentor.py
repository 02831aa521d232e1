"""The meta-architecture: backbone, decoder, classifier; the first two compiled where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from gmm_anomaly.config import with_rules
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.scores import FEATURE_DISTANCE as DISTANCE
from gmm_anomaly.scores import LOG_DENSITY, LOGITS, MAX_LOGIT_MOMENTS, OUTLIER_RATIO, PixelOutputs
from gmm_anomaly.values import check_sections

from .backbones import build_backbone
from .backbones.base import keep_levels
from .classifiers import PixelClassifier, build_classifier
from .compiling import check_compiler, compiled_pixel_features, pixel_features
from .decoders import build_decoder
from .decoders.base import Decoded
from .feature_distance import (
    EMBEDDING,
    FeatureDistance,
    FrozenBackbone,
    build_feature_distance,
    build_frozen_backbone,
)
from .inference import InferenceMode
from .losses import IGNORE_LABEL
from .max_logit_moments import MaxLogitMoments
from .outlier_losses import OutlierLoss, build_outlier_loss
from .restoration import COARSE, restore
from .scoring import Scoring


@META_ARCH_REGISTRY.register()
class AnomalySegmentor(nn.Module):
    """Semantic segmentation with anomaly scores, under Detectron2's input and output contract.

    Args:
        backbone: images to a pyramid of features.
        decoder: the pyramid to pixel features; has ``in_features`` and ``out_channels``.
        classifier: pixel features to class evidence.
        feature_distance: distances on features, fitted after training; or None.
        frozen_backbone: what gives them the backbone's features; None: the backbone.
        max_logit_moments: how large logits are on the training set, measured after training; or None.
        outlier_loss: of pasted objects, on the classifier's logits; or None.
        pixel_mean, pixel_std: per channel, in the order and units of the input images (0 to 255).
        inference: how test images are looked at; by default whole, once.
        scoring: the anomaly scores of a prediction; by default ``msp``.
        compiled: whether ``forward`` runs backbone and decoder compiled.
        channels_last: whether weights and images are in channels-last order.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        decoder: nn.Module,
        classifier: PixelClassifier,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        feature_distance: FeatureDistance | None = None,
        frozen_backbone: FrozenBackbone | None = None,
        max_logit_moments: MaxLogitMoments | None = None,
        outlier_loss: OutlierLoss | None = None,
        inference: InferenceMode | None = None,
        scoring: Scoring | None = None,
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.classifier = classifier
        self.feature_distance = feature_distance
        self.frozen_backbone = frozen_backbone
        self.max_logit_moments = max_logit_moments
        self.outlier_loss = outlier_loss
        self.inference = inference or InferenceMode()
        self.scoring = scoring or Scoring(["msp"], given=(LOGITS,))
        self.compiled = compiled
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_sections(cfg, "MODEL.", "TEST.")
        cfg = with_rules(cfg)
        if cfg.MODEL.COMPILE:
            check_compiler(cfg.MODEL.DEVICE)
        backbone = build_backbone(cfg)
        decoder = build_decoder(cfg, backbone.output_shape())
        read = {*decoder.in_features, *getattr(getattr(decoder, "auxiliary", None), "features", ())}
        keep_levels(backbone, read, cfg.MODEL.FEATURE_DISTANCE.FEATURES, len(cfg.MODEL.PIXEL_MEAN))
        classifier = build_classifier(cfg, decoder.out_channels)
        shapes = dict(backbone.output_shape())
        if classifier.embedding_channels is not None:
            shapes[EMBEDDING] = ShapeSpec(channels=classifier.embedding_channels, stride=decoder.out_stride)
        distance = build_feature_distance(cfg, shapes)
        moments = MaxLogitMoments(classifier.num_classes) if "sml" in cfg.TEST.SCORES else None
        given = {
            LOGITS: True,
            LOG_DENSITY: classifier.generative,
            DISTANCE: distance is not None,
            MAX_LOGIT_MOMENTS: moments is not None,
            OUTLIER_RATIO: distance is not None and distance.outliers is not None,
        }
        return {
            "backbone": backbone,
            "decoder": decoder,
            "classifier": classifier,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "feature_distance": distance,
            "frozen_backbone": build_frozen_backbone(cfg, backbone),
            "max_logit_moments": moments,
            "outlier_loss": build_outlier_loss(cfg, decoder.out_channels) if cfg.MODEL.OUTLIER.LOSS else None,
            "inference": InferenceMode.from_config(cfg),
            "scoring": Scoring.from_config(cfg, given=[kind for kind, there in given.items() if there]),
            "compiled": cfg.MODEL.COMPILE,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def bank(self) -> GaussianMixtureBank | None:
        """The mixtures that EM fits, if the classifier has some."""
        return getattr(self.classifier, "bank", None)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses while training, predictions otherwise.

        Args:
            batched_inputs: one dict per image: ``image`` (3, H, W) in the configured channel order, 0 to 255;
                ``sem_seg`` (H, W) int64 with 255 ignored, and with an outlier loss ``outliers`` (H, W) bool,
                while training; ``height`` and ``width`` of the output, by default the image's.

        Returns:
            Training: named scalar losses. Inference: one dict per image with ``sem_seg`` (C, height, width)
            logits; ``anomaly_scores`` {name: (height, width) float32}, higher = more anomalous, for every
            name of ``TEST.SCORES``, without and with the post-processes asked for; ``anomaly_score``, the
            first of them.

        Raises:
            UnfittedMixtureError, UnfittedMomentsError: inference with mixtures, distances or moments that
                were never fitted.
            FloatingPointError: a score that is NaN or infinite (``TEST.NON_FINITE_SCORES`` "stop").
        """
        if self.training:
            images = self.preprocess(batched_inputs)
            labels = self._labels(batched_inputs, images)
            _, decoded = self._pixel_features(images.tensor, labels)
            losses = self.classifier.losses(decoded.features, labels) | decoded.losses
            if self.outlier_loss is not None:
                logits = self.classifier(decoded.features).logits
                losses |= self.outlier_loss(decoded.features, logits, labels, batched_inputs)
            return losses
        if "sml" in self.scoring.scores and self.max_logit_moments is not None:
            self.max_logit_moments.require_fitted()
        found = self.infer(batched_inputs, self.scoring.stacked)
        return [
            self.scoring.result(item, sem_seg, maps)
            for item, (sem_seg, maps) in zip(batched_inputs, found, strict=True)
        ]

    def infer(
        self, batched_inputs: list[dict[str, Any]], score: Callable[[PixelOutputs], Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits (C, height, width) and scores (S, height, width) of each image, for any function of
        :class:`PixelOutputs` (maps at one resolution) to (S, h, w)."""
        images = [self.normalised(item) for item in batched_inputs]
        seen = self.inference.see(images, self._tiles)
        restored = []
        for found, item, image in zip(seen, batched_inputs, images, strict=True):
            size = int(item.get("height", image.shape[1])), int(item.get("width", image.shape[2]))
            restored.append(restore(found, size, self.inference.score_on, score))
        return restored

    def normalised(self, item: dict[str, Any]) -> Tensor:
        """The image of an input, (3, H, W) float32 in units of the pixels' standard deviation."""
        return (item["image"].to(self.device, non_blocking=True).float() - self.pixel_mean) / self.pixel_std

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """:meth:`normalised` and :meth:`padded` images."""
        return self.padded([self.normalised(item) for item in batched_inputs])

    def outputs(self, images: Tensor) -> tuple[dict[str, Tensor], PixelOutputs]:
        """images: (B, 3, H, W) normalised and padded -> the pyramid that distances are measured on, and the
        classifier's outputs, without distances."""
        # Here, so that both backbones see the same tensor.
        images = images.contiguous(memory_format=self.memory_format)
        if self.frozen_backbone is None:
            pyramid, decoded = self._pixel_features(images)
        else:
            with self.frozen_backbone.sharing():
                _, decoded = self._pixel_features(images)
                pyramid = self.frozen_backbone(images)
        return pyramid, self.classifier(decoded.features)

    def _pixel_features(
        self, images: Tensor, labels: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Decoded]:
        run = compiled_pixel_features() if self.compiled else pixel_features
        return run(self.backbone, self.decoder, images.contiguous(memory_format=self.memory_format), labels)

    def padded(self, images: list[Tensor]) -> ImageList:
        """Normalised images (3, H, W), padded to one size that the backbone can take."""
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _labels(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> Tensor:
        labels = [item["sem_seg"].to(self.device, non_blocking=True) for item in batched_inputs]
        padded = ImageList.from_tensors(labels, self.backbone.size_divisibility, IGNORE_LABEL).tensor
        assert padded.shape[-2:] == images.tensor.shape[-2:], "images and labels must have the same size"
        return padded

    def score_inputs(self, images: Tensor) -> PixelOutputs:
        """images: (B, 3, H, W) normalised and padded -> all that scores read, without the embedding:
        ``feature_distance`` and ``outlier_ratio``, (B, h', w'), may have another resolution than the logits.

        Raises:
            UnfittedMixtureError: mixtures or distances that were never fitted.
        """
        pyramid, outputs = self.outputs(images)
        distance, moments = self.feature_distance, self.max_logit_moments
        known: dict[str, Any] = {}
        if distance is not None:
            known["feature_distance"] = distance(pyramid, outputs.embedding)[:, 0]
            known["hybrid_with"] = distance.hybrid_with
            known["hybrid_moments"] = distance.hybrid_moments
            if distance.outliers is not None:
                known["outlier_ratio"] = distance.outlier_ratio(pyramid, outputs.embedding)[:, 0]
                known["outlier_moments"] = distance.outliers.moments
        if moments is not None:
            known["max_logit_moments"] = (moments.mean, moments.std)
        return replace(outputs, embedding=None, **known)

    def _tiles(self, images: list[Tensor]) -> tuple[list[PixelOutputs], tuple[int, int]]:
        """Outputs of normalised images (3, H, W), and the one size that they were padded to."""
        padded = self.padded(images).tensor
        outputs = self.score_inputs(padded)
        maps = {name: getattr(outputs, name) for name in ("logits", "log_density", *COARSE)}
        tiles = [
            replace(outputs, **{name: m if m is None else m[index].contiguous() for name, m in maps.items()})
            for index in range(len(images))
        ]
        return tiles, (padded.shape[-2], padded.shape[-1])
