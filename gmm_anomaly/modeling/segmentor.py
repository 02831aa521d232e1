"""The meta-architecture: backbone, decoder, classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank

from .backbones import build_backbone
from .classifiers import PixelClassifier, build_classifier
from .compiled_network import check_compiler, compiled_pixel_features, pixel_features
from .decoders import build_decoder
from .decoders.base import Decoded
from .evidence import ImageEvidence, PixelEvidence
from .feature_distance import FeatureDistance, build_feature_distance, feature_shapes
from .inference_mode import InferenceMode, scaled_size
from .max_logit_moments import MaxLogitMoments, build_max_logit_moments
from .restoration import Look, Restoration

IGNORE_LABEL = 255


@META_ARCH_REGISTRY.register()
class AnomalySegmentor(nn.Module):
    """Semantic segmentation with an anomaly score, under Detectron2's input and output contract.

    Args:
        backbone: images to a pyramid of features.
        decoder: the pyramid to pixel features; has ``in_features`` and ``out_channels``.
        classifier: pixel features to class evidence.
        feature_distance: distances on backbone features, fitted after training; or None.
        max_logit_moments: how large logits are on the training set, measured after training; or None.
        pixel_mean, pixel_std: per channel, in the order and units of the input images (0 to 255).
        inference: how test images are looked at; by default whole, once.
        compiled: whether ``forward`` and ``evidence`` run backbone and decoder compiled.
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
        max_logit_moments: MaxLogitMoments | None = None,
        inference: InferenceMode | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.classifier = classifier
        self.feature_distance = feature_distance
        self.max_logit_moments = max_logit_moments
        self.inference = inference or InferenceMode()
        self.compiled = compiled
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if cfg.MODEL.COMPILE:
            check_compiler(cfg.MODEL.DEVICE)
        backbone = build_backbone(cfg)
        decoder = build_decoder(cfg, backbone.output_shape())
        classifier = build_classifier(cfg, decoder.out_channels)
        shapes = feature_shapes(backbone.output_shape(), decoder.out_stride, classifier.embedding_channels)
        return {
            "backbone": backbone,
            "decoder": decoder,
            "classifier": classifier,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "feature_distance": build_feature_distance(cfg, shapes),
            "max_logit_moments": build_max_logit_moments(cfg),
            "inference": InferenceMode.from_config(cfg),
            "compiled": cfg.MODEL.COMPILE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def bank(self) -> GaussianMixtureBank | None:
        """The mixtures that EM fits, if the classifier has some."""
        return getattr(self.classifier, "bank", None)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses while training, predictions otherwise.

        Args:
            batched_inputs: one dict per image: ``image`` (3, H, W) in the configured channel order, 0 to 255;
                ``sem_seg`` (H, W) int64 with 255 ignored, while training; ``height`` and ``width`` of the
                output, by default the image's.

        Returns:
            Training: named scalar losses. Inference: one dict per image with ``sem_seg`` (C, height, width)
            logits, ``anomaly_score`` (height, width), the classifier's own score, higher = more anomalous;
            from a generative classifier ``log_density`` (C, height, width), class log-densities in nats; and
            ``feature_distance`` (height, width) where the model measures it.

        Raises:
            UnfittedMixtureError: inference with mixtures that were never fitted.
        """
        if not self.training:
            return [self._predict(evidence) for evidence in self.evidence(batched_inputs)]
        images = self.preprocess(batched_inputs)
        labels = self._labels(batched_inputs, images)
        _, decoded = self._pixel_features(images.tensor, labels)
        return self.classifier.losses(decoded.features, labels) | decoded.losses

    def evidence(self, batched_inputs: list[dict[str, Any]]) -> list[ImageEvidence]:
        """What the network says about each image, not yet enlarged to the output's size.

        Args:
            batched_inputs: as :meth:`forward` takes them at inference.

        Raises:
            UnfittedMixtureError: with mixtures that were never fitted.
        """
        mode = self.inference
        images = [self._normalised(item) for item in batched_inputs]
        tiles: list[list[PixelEvidence]] = [[] for _ in images]
        looks: list[list[Look]] = [[] for _ in images]
        for scale, mirrored in mode.looks:
            seen = [_transformed(image, scale, mirrored) for image in images]
            windows = [mode.windows(_size(image)) for image in seen]
            cuts = [(index, window) for index, grid in enumerate(windows) for window in grid]
            # Whole images go through the network together, windows one after the other.
            step = len(cuts) if mode.window is None and len(cuts) == len(seen) else 1
            padded: dict[int, tuple[int, int]] = {}
            for start in range(0, len(cuts), step):
                batch = cuts[start : start + step]
                found, padded_size = self._tiles([window.cut(seen[index]) for index, window in batch])
                for (index, _), tile in zip(batch, found, strict=True):
                    tiles[index].append(tile)
                    padded[index] = padded_size
            for index, image in enumerate(seen):
                looks[index].append(Look(_size(image), windows[index], padded[index], mirrored))
        return [
            ImageEvidence(tiles[index], Restoration(looks[index], _output_size(item, image)), mode.score_on)
            for index, (item, image) in enumerate(zip(batched_inputs, images, strict=True))
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them to one size that the backbone can take."""
        return self._padded([self._normalised(item) for item in batched_inputs])

    def _pixel_features(
        self, images: Tensor, labels: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Decoded]:
        run = compiled_pixel_features() if self.compiled else pixel_features
        return run(self.backbone, self.decoder, images, labels)

    def _normalised(self, item: dict[str, Any]) -> Tensor:
        return (item["image"].to(self.device).float() - self.pixel_mean) / self.pixel_std

    def _padded(self, images: list[Tensor]) -> ImageList:
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _labels(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> Tensor:
        labels = [item["sem_seg"].to(self.device) for item in batched_inputs]
        padded = ImageList.from_tensors(labels, self.backbone.size_divisibility, IGNORE_LABEL).tensor
        assert padded.shape[-2:] == images.tensor.shape[-2:], "images and labels must have the same size"
        return padded

    def _tiles(self, images: list[Tensor]) -> tuple[list[PixelEvidence], tuple[int, int]]:
        """Evidence of normalised images (3, H, W), and the one size that they were padded to."""
        padded = self._padded(images).tensor
        pyramid, decoded = self._pixel_features(padded)
        classified = self.classifier(decoded.features)
        distance = (
            None if self.feature_distance is None else self.feature_distance(pyramid, classified.embedding)
        )
        tiles = [
            PixelEvidence(
                classified.logits[index].contiguous(),
                None if classified.log_density is None else classified.log_density[index].contiguous(),
                None if distance is None else distance[index, 0],
            )
            for index in range(len(images))
        ]
        return tiles, _size(padded)

    def _predict(self, evidence: ImageEvidence) -> dict[str, Tensor]:
        given = [field for field, maps in evidence.tiles[0]._asdict().items() if maps is not None]
        kept, scores = evidence.restore(
            lambda part: self.classifier.anomaly_score(part.classified), keep=given
        )
        return {"sem_seg": kept.pop("logits"), "anomaly_score": scores[0], **kept}


def _transformed(image: Tensor, scale: float, mirrored: bool) -> Tensor:
    """image: (3, H, W), resized as training images are, and mirrored."""
    if scale != 1:
        size = scaled_size(_size(image), scale)
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    return image.flip(-1) if mirrored else image


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _output_size(item: dict[str, Any], image: Tensor) -> tuple[int, int]:
    height, width = _size(image)
    return int(item.get("height", height)), int(item.get("width", width))
