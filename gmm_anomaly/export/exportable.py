"""A segmentor as one function of an image: normalisation, network and anomaly score."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.modeling.inference import FEATURES
from gmm_anomaly.modeling.segmentor import AnomalySegmentor
from gmm_anomaly.scores import PixelOutputs
from gmm_anomaly.scores.registry import Score

from .frozen import FrozenDistance, freeze_classifier
from .same_padding import make_padding_constant


class ExportableSegmentor(nn.Module):
    """Images to segmentation and anomaly score, as the evaluation of a trained segmentor gives them.

    The model is copied; its own state stays as it is.

    Args:
        model: trained, a pixel classifier's (not a mask model), that looks at a whole image once.
        score: a name as in ``TEST.SCORES``, without post-processes.
        image_format: the channel order the model was trained on, "RGB" or "BGR".

    Raises:
        ValueError: a model, a way of inference or a score that cannot be exported; says what to change.
        UnfittedMixtureError, UnfittedMomentsError: a model that is not trained, or not fitted for the score.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: AnomalySegmentor, score: str, *, image_format: str = "RGB") -> None:
        super().__init__()
        require_exportable(model, score)
        self.score_name = score
        self.score = _score_of(model, score)
        self.reversed_channels = image_format == "BGR"
        self.score_on_features = model.inference.score_on == FEATURES
        self.divisor = max(1, int(model.backbone.size_divisibility))
        # torch.export holds a map of one row or column for a special case.
        strides = [int(shape.stride) for shape in model.backbone.output_shape().values()]
        self.min_side = max(self.divisor, *strides) + 1
        model = copy.deepcopy(model).eval().cpu().float().requires_grad_(False)
        self.backbone, self.decoder = model.backbone, model.decoder
        # Images are padded to the largest stride, so that every stride divides what it meets.
        if self.divisor >= max(strides):
            make_padding_constant(self.backbone)
        self.classifier = freeze_classifier(model.classifier)
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.feature_distance, self.hybrid_with = None, "density"
        if model.feature_distance is not None:
            distance = model.feature_distance
            self.feature_distance = FrozenDistance(distance)
            self.hybrid_with = distance.hybrid_with
            mean, std = distance.hybrid_moments
            self.register_buffer("hybrid_mean", mean.clone())
            self.register_buffer("hybrid_std", std.clone())
        self.has_moments = score == "sml"
        if self.has_moments:
            model.max_logit_moments.require_fitted()
            self.register_buffer("max_logit_mean", model.max_logit_moments.mean.clone())
            self.register_buffer("max_logit_std", model.max_logit_moments.std.clone())
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segmentation and anomaly score.

        Args:
            image: (B, 3, H, W) RGB, 0 to 255, uint8 or floating point, of any height and width.

        Returns:
            Class ids (B, H, W) int64; scores (B, H, W) float32, higher = more anomalous.
        """
        if self.reversed_channels:
            image = image.flip(1)
        normal = (image.float() - self.pixel_mean) / self.pixel_std
        height, width = normal.shape[-2:]
        # Not -height % divisor: exporters see in this form that strides divide the padded size.
        padded_height = (height + self.divisor - 1) // self.divisor * self.divisor
        padded_width = (width + self.divisor - 1) // self.divisor * self.divisor
        padded = F.pad(normal, (0, padded_width - width, 0, padded_height - height))
        pyramid = self.backbone(padded)
        classified = self.classifier(self.decoder(pyramid).features)
        distance = None
        if self.feature_distance is not None:
            distance = self.feature_distance(pyramid, classified.embedding)

        def restored(maps: Tensor) -> Tensor:
            size = (padded_height, padded_width)
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            # Not a slice: exporters would ask how its layout compares with the padded one's.
            rows, columns = (torch.arange(length, device=maps.device) for length in (height, width))
            return maps.index_select(2, rows).index_select(3, columns)

        logits = restored(classified.logits)
        if self.score_on_features:
            small = classified.logits.shape[-2:]
            if distance is not None:
                distance = F.interpolate(distance, size=small, mode="bilinear", align_corners=False)
            score = restored(self._score(classified.logits, classified.log_density, distance)[:, None])[:, 0]
        else:
            density = None if classified.log_density is None else restored(classified.log_density)
            distance = None if distance is None else restored(distance)
            score = self._score(logits, density, distance)
        return logits.argmax(dim=1), score

    def _score(self, logits: Tensor, log_density: Tensor | None, distance: Tensor | None) -> Tensor:
        """Maps (B, C, h, w), of the distance (B, 1, h, w) -> (B, h, w) float32."""
        measured = distance is not None
        outputs = PixelOutputs(
            logits=logits,
            log_density=log_density,
            feature_distance=distance[:, 0] if measured else None,
            hybrid_with=self.hybrid_with,
            hybrid_moments=(self.hybrid_mean, self.hybrid_std) if measured else None,
            max_logit_moments=(self.max_logit_mean, self.max_logit_std) if self.has_moments else None,
        )
        return self.score(outputs).to(torch.float32)


def _score_of(model: AnomalySegmentor, score: str) -> Score:
    known = model.scoring.scores
    if score in known:
        return known[score]
    raise ValueError(f"export: the model gives the scores {', '.join(known)} (TEST.SCORES), not {score!r}")


def require_exportable(model: nn.Module, score: str) -> None:
    """Raise ValueError, with what to change, for what has no form as one graph of one image."""
    if not isinstance(model, AnomalySegmentor):
        raise ValueError(
            f"export: {type(model).__name__} cannot be exported; only pixel classifiers can "
            '(MODEL.META_ARCHITECTURE "AnomalySegmentor")'
        )
    if "+" in score:
        raise ValueError(
            f"export: the post-processes of {score!r} are not part of a network; export the score "
            f"{score.split('+')[0]!r} and apply them to its maps"
        )
    if model.inference.window is not None:
        raise ValueError(
            "export: sliding windows are not part of a network; set TEST.SLIDING_WINDOW.ENABLED False, and "
            "cut images into windows outside"
        )
    if model.inference.looks != [(1.0, False)]:
        raise ValueError("export: several looks at an image are no one network; set TEST.AUG.ENABLED False")
