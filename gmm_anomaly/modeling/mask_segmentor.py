"""The meta-architecture of mask models: queries that each give a mask and a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.scores import LOGITS, MASKS, MaskOutputs, PixelOutputs, rba_score, semantic_map
from gmm_anomaly.values import check_sections

from .losses import IGNORE_LABEL
from .mask2former import build_mask2former
from .outlier_losses import outlier_masks, rba_loss
from .scoring import Scoring

# Mask2Former's coarsest features have this stride.
SIZE_DIVISIBILITY = 32


@META_ARCH_REGISTRY.register()
class MaskAnomalySegmentor(nn.Module):
    """Mask2Former under the input and output contract of :class:`AnomalySegmentor`.

    Args:
        network: transformers' ``Mask2FormerForUniversalSegmentation``.
        pixel_mean, pixel_std: per channel, in the order and units of the input images (0 to 255).
        anomaly_queries, road_queries: queries that Maskomaly's score treats apart, of this very checkpoint.
        pretrained: the network's weights need no checkpoint to be evaluated.
        outlier_loss: "rba": RbA's loss on pasted objects too, at each of the decoder's layers.
        scoring: the anomaly scores of a prediction; by default ``mask_void``.

    Raises:
        ValueError: a query that the network does not have.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        anomaly_queries: Sequence[int] = (),
        road_queries: Sequence[int] = (),
        pretrained: bool = False,
        outlier_loss: str = "",
        scoring: Scoring | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.anomaly_queries = _checked(anomaly_queries, "ANOMALY_QUERIES", network.config.num_queries)
        self.road_queries = _checked(road_queries, "ROAD_QUERIES", network.config.num_queries)
        self.pretrained = pretrained
        if outlier_loss not in ("", "rba"):
            raise ValueError(
                f'MODEL.OUTLIER.LOSS: expected "rba" or "" with a mask model, found {outlier_loss!r}, which '
                'needs MODEL.CLASSIFIER.NAME "softmax"'
            )
        self.outlier_loss = outlier_loss
        self.scoring = scoring or Scoring(["mask_void"], given=(LOGITS, MASKS))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_sections(cfg, "MODEL.", "TEST.")
        keys = cfg.MODEL.MASK2FORMER
        for key, value, needed in (
            ("TEST.SLIDING_WINDOW.ENABLED", cfg.TEST.SLIDING_WINDOW.ENABLED, False),
            ("TEST.AUG.ENABLED", cfg.TEST.AUG.ENABLED, False),
            ("TEST.SCORE_ON", cfg.TEST.SCORE_ON, "logits"),
        ):
            if value != needed:
                raise ValueError(
                    f"{key}: expected {needed!r}, found {value!r}: a mask model (MODEL.META_ARCHITECTURE "
                    f"{cfg.MODEL.META_ARCHITECTURE!r}) looks at whole images once, and scores its masks there"
                )
        return {
            "network": build_mask2former(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "anomaly_queries": keys.ANOMALY_QUERIES,
            "road_queries": keys.ROAD_QUERIES,
            "pretrained": bool(keys.WEIGHTS) and not keys.REPLACE_CLASSES,
            "outlier_loss": cfg.MODEL.OUTLIER.LOSS,
            "scoring": Scoring.from_config(cfg, given=(LOGITS, MASKS)),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses while training, predictions otherwise.

        Args:
            batched_inputs: as :class:`AnomalySegmentor` takes them.

        Returns:
            Training: Mask2Former's weighted losses ``loss_class``, ``loss_mask`` and ``loss_dice``, and
            ``loss_rba`` if asked for, each summed over the decoder's layers. Inference: one dict per image
            with ``sem_seg`` (C, height, width), the semantic map ``sum_i p_i(c) m_i``; ``anomaly_scores`` and
            ``anomaly_score`` as :class:`AnomalySegmentor` gives them; ``mask_logits`` (Q, height, width) and
            ``class_logits`` (Q, C + 1), the last "no object".
        """
        images = self.preprocess(batched_inputs)
        if self.training:
            return self._losses(images, batched_inputs)
        outputs = self.network(images.tensor)
        return [self._prediction(outputs, images, index, item) for index, item in enumerate(batched_inputs)]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them to one size that the network can take."""
        images = [
            (item["image"].to(self.device, non_blocking=True).float() - self.pixel_mean) / self.pixel_std
            for item in batched_inputs
        ]
        return ImageList.from_tensors(images, SIZE_DIVISIBILITY)

    def _losses(self, images: ImageList, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        outputs = self.network(images.tensor, output_auxiliary_logits=True)
        masks, classes, labels = [], [], []
        height, width = images.tensor.shape[-2:]
        for item in batched_inputs:
            label = item["sem_seg"].to(self.device, non_blocking=True)
            present = label.unique()
            present = present[present != IGNORE_LABEL]
            # Padding belongs to no mask.
            padding = (0, width - label.shape[1], 0, height - label.shape[0])
            labels.append(F.pad(label, padding, value=IGNORE_LABEL))
            masks.append((labels[-1] == present[:, None, None]).float())
            classes.append(present)
        # Costs of the matching and losses overflow in half precision.
        with torch.autocast(self.device.type, enabled=False):
            terms = self.network.get_loss_dict(
                outputs.masks_queries_logits.float(),
                outputs.class_queries_logits.float(),
                masks,
                classes,
                [{key: value.float() for key, value in layer.items()} for layer in outputs.auxiliary_logits],
            )
        names = {"loss_class": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
        losses = {
            own: torch.stack([term for name, term in terms.items() if name.startswith(prefix)]).sum()
            for own, prefix in names.items()
        }
        if self.outlier_loss:
            known = torch.stack(labels)
            outliers = outlier_masks(batched_inputs, known)
            layers = [
                (layer["masks_queries_logits"], layer["class_queries_logits"])
                for layer in (outputs, *outputs.auxiliary_logits)
            ]
            scores = [torch.stack([*map(rba_score, *layer)]) for layer in layers]
            losses["loss_rba"] = torch.stack([rba_loss(score, known, outliers) for score in scores]).sum()
        return losses

    def _prediction(
        self, outputs: Any, images: ImageList, index: int, item: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = images.image_sizes[index]
        output_size = (item.get("height", height), item.get("width", width))
        mask_logits = outputs.masks_queries_logits[index : index + 1].float()
        mask_logits = F.interpolate(
            mask_logits, size=images.tensor.shape[-2:], mode="bilinear", align_corners=False
        )[..., :height, :width]
        if output_size != (height, width):
            mask_logits = F.interpolate(mask_logits, size=output_size, mode="bilinear", align_corners=False)
        mask_logits, class_logits = mask_logits[0], outputs.class_queries_logits[index].float()
        sem_seg = semantic_map(mask_logits, class_logits)
        masks = MaskOutputs(mask_logits, class_logits, self.anomaly_queries, self.road_queries)
        maps = self.scoring.stacked(PixelOutputs(logits=sem_seg, masks=masks))
        own = {"mask_logits": mask_logits, "class_logits": class_logits}
        return self.scoring.result(item, sem_seg, maps) | own


def _checked(queries: Sequence[int], key: str, number: int) -> tuple[int, ...]:
    wrong = [query for query in queries if query >= number]
    if wrong:
        raise ValueError(
            f"MODEL.MASK2FORMER.{key}: the network has {number} queries, 0 to {number - 1}; found {wrong}. "
            "Query sets hold for one checkpoint: `gmm-anomaly find-queries` finds this one's"
        )
    return tuple(queries)
