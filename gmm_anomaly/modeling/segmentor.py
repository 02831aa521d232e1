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
from .classifiers import Classified, PixelClassifier, build_classifier
from .decoders import build_decoder

IGNORE_LABEL = 255


@META_ARCH_REGISTRY.register()
class AnomalySegmentor(nn.Module):
    """Semantic segmentation with an anomaly score, under Detectron2's input and output contract.

    Args:
        backbone: images to a pyramid of features.
        decoder: the pyramid to pixel features; has ``in_features`` and ``out_channels``.
        classifier: pixel features to class evidence.
        pixel_mean, pixel_std: per channel, in the order and units of the input images (0 to 255).
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
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.classifier = classifier
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        decoder = build_decoder(cfg, backbone.output_shape())
        return {
            "backbone": backbone,
            "decoder": decoder,
            "classifier": build_classifier(cfg, decoder.out_channels),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
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
            and, from a generative classifier, ``log_density`` (C, height, width) class log-densities in nats.

        Raises:
            UnfittedMixtureError: inference with mixtures that were never fitted.
        """
        images = self.preprocess(batched_inputs)
        pyramid = self.backbone(images.tensor)
        if self.training:
            labels = self._labels(batched_inputs, images)
            decoded = self.decoder(pyramid, labels)
            return self.classifier.losses(decoded.features, labels) | decoded.losses
        classified = self.classifier(self.decoder(pyramid).features)
        return [
            self._postprocess(classified, images, index, item) for index, item in enumerate(batched_inputs)
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them to one size that the backbone can take."""
        images = [
            (item["image"].to(self.device).float() - self.pixel_mean) / self.pixel_std
            for item in batched_inputs
        ]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _labels(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> Tensor:
        labels = [item["sem_seg"].to(self.device) for item in batched_inputs]
        padded = ImageList.from_tensors(labels, self.backbone.size_divisibility, IGNORE_LABEL).tensor
        assert padded.shape[-2:] == images.tensor.shape[-2:], "images and labels must have the same size"
        return padded

    def _postprocess(
        self, classified: Classified, images: ImageList, index: int, item: dict[str, Any]
    ) -> dict[str, Tensor]:
        image_size = images.image_sizes[index]
        output_size = (item.get("height", image_size[0]), item.get("width", image_size[1]))

        def restore(evidence: Tensor) -> Tensor:
            padded_size = images.tensor.shape[-2:]
            full = F.interpolate(
                evidence[index : index + 1], size=padded_size, mode="bilinear", align_corners=False
            )
            full = full[..., : image_size[0], : image_size[1]]
            if output_size != tuple(image_size):
                full = F.interpolate(full, size=output_size, mode="bilinear", align_corners=False)
            return full

        full = Classified(
            restore(classified.logits),
            None if classified.log_density is None else restore(classified.log_density),
        )
        result = {"sem_seg": full.logits[0], "anomaly_score": self.classifier.anomaly_score(full)[0]}
        if full.log_density is not None:
            result["log_density"] = full.log_density[0]
        return result
