"""Which queries of a mask model cover a region that labels mark: anomalies, or the road."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gmm_anomaly.data.label_rule import IGNORE_LABEL

from .records import EvaluatedRecords

# Maskomaly's rule: masks above 0.9 count, queries with a mean IoU of at least 0.25 are taken.
MASK_THRESHOLD = 0.9
MINIMUM_IOU = 0.25


@dataclass(frozen=True)
class QueryOverlap:
    """Overlap of each query's mask with a region, over a data set.

    Attributes:
        mean_iou: (Q,) float64, mean over the images that have the region.
        class_probability: (Q, C + 1) float64, mean over the same images; the last is "no object".
        images: how many images have the region.
    """

    mean_iou: Tensor
    class_probability: Tensor
    images: int

    def ranking(self) -> list[int]:
        """All queries, best first; equals in their order."""
        return self.mean_iou.argsort(descending=True, stable=True).tolist()

    def chosen(self, *, minimum_iou: float = MINIMUM_IOU, at_least: int = 0) -> list[int]:
        """Queries of at least ``minimum_iou``, best first, and the next best up to ``at_least`` in all."""
        enough = int((self.mean_iou >= minimum_iou).sum())
        return self.ranking()[: max(enough, at_least)]


def query_iou(
    mask_logits: Tensor, region: Tensor, valid: Tensor, threshold: float = MASK_THRESHOLD
) -> Tensor:
    """IoU of each query's mask with a region, pixels that are not valid left out of both.

    Maskomaly's released code subtracts the image's whole void area from the union, whether or not the mask
    covers it, so that unions may come out too small or negative; here only void under the mask is left out.

    Args:
        mask_logits: (Q, H, W) float.
        region, valid: (H, W) bool.
        threshold: masks (sigmoid) above it count.

    Returns:
        (Q,) float64 in [0, 1]; NaN where the region and the mask are empty.
    """
    covered = (mask_logits > math.log(threshold / (1 - threshold))) & valid
    wanted = region & valid
    both = (covered & wanted).flatten(1).sum(1).double()
    return both / ((covered | wanted).flatten(1).sum(1).double())


def anomaly_region(label: np.ndarray) -> np.ndarray:
    """The anomalies of an (H, W) label of an anomaly set."""
    return label == 1


def class_region(records: EvaluatedRecords, class_name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The rule that gives a class's pixels of a closed set's label. ValueError: no such class."""
    classes = list(records.metadata.stuff_classes)
    if class_name not in classes:
        raise ValueError(f"{records.name} has no class {class_name!r}; its classes are {', '.join(classes)}")
    index = classes.index(class_name)
    return lambda label: label == index


@torch.no_grad()
def measure_overlap(
    model: nn.Module,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    records: EvaluatedRecords,
    is_region: Callable[[np.ndarray], np.ndarray],
    *,
    threshold: float = MASK_THRESHOLD,
) -> QueryOverlap:
    """Run a mask model over a data set and measure its queries.

    Args:
        model: gives ``mask_logits`` (Q, H, W) and ``class_logits`` (Q, C + 1) for each image; is put into
            evaluation mode.
        batches: the data set's test loader.
        records: the data set, with labels.
        is_region: an (H, W) uint8 label to the (H, W) bool region.
        threshold: masks above it count.

    Raises:
        ValueError: no image has the region. An image without it says nothing about which query covers it.
    """
    model.eval()
    total: Tensor | None = None
    probability: Tensor | None = None
    images = 0
    for batch in batches:
        for item, result in zip(batch, model(batch), strict=True):
            label = records.label(records.find(item))
            region = is_region(label)
            if not region.any():
                continue
            masks = result["mask_logits"]
            on_device = [
                torch.from_numpy(found).to(masks.device) for found in (region, label != IGNORE_LABEL)
            ]
            iou = query_iou(masks, *on_device, threshold).cpu()
            share = result["class_logits"].double().softmax(dim=-1).cpu()
            total = iou if total is None else total + iou
            probability = share if probability is None else probability + share
            images += 1
    if total is None or probability is None:
        raise ValueError(
            f"{records.name}: none of its {len(records)} images has a pixel of the region looked for"
        )
    return QueryOverlap(total / images, probability / images, images)
