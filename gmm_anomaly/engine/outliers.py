"""Fit a second density, that of objects pasted into training images, onto features that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.data.outliers import OUTLIER_LABEL, PasteOutliers
from gmm_anomaly.data.stream import seeded
from gmm_anomaly.gmm import TiedGaussianStatistics
from gmm_anomaly.modeling.feature_distance import features_by_name
from gmm_anomaly.modeling.losses import resized_labels

from .feature_distance import training_items, windows_of

# A cell is an outlier's from this share of it on, and known where no object reaches within CLEAR cells.
COVERED, CLEAR = 0.7, 2
# The third number of the draws' seed: 0 is of training images, 1 of the steps of a training.
DRAWS = 2


@torch.no_grad()
def fit_outliers(cfg: CfgNode, model: nn.Module, items: Iterable[dict[str, Any]] | None = None) -> None:
    """Fit the :class:`~gmm_anomaly.modeling.outlier_head.OutlierHead` of a model whose distances are fitted,
    and keep it in the model. Deterministic by ``SEED``. Collective.

    Args:
        items: this rank's images as for ``fit_distances``; None: the training images that the distances are
            fitted to. Into each of them objects are pasted.

    Raises:
        UnfittedMixtureError: distances that are not fitted.
        ValueError: no cell inside or outside an object; others as ``PasteOutliers``.
    """
    distance = model.feature_distance
    distance.require_fitted()
    training = model.training
    model.eval()
    device = model.device
    dims = {name: len(level.centre) for name, level in distance.levels.items()}
    outliers, known = (
        {name: TiedGaussianStatistics(1, dim, device) for name, dim in dims.items()} for _ in range(2)
    )
    items = training_items(cfg, "Fitting outliers") if items is None else items
    for item in pasted(cfg, items):
        for window, (pyramid, outputs, label, _) in enumerate(windows_of(model, item)):
            for name, feature in features_by_name(distance.names, pyramid, outputs.embedding).items():
                size = feature.shape[-2], feature.shape[-1]
                inside, outside = cells(label, size, model.classifier.num_classes)
                pixels = feature[0].flatten(1).T
                for statistics, where in ((outliers, inside), (known, outside)):
                    found = pixels[where]
                    labels = torch.zeros(len(found), dtype=torch.int64, device=device)
                    statistics[name].add(found, labels, seed=100_000 * item["index"] + window)
    for statistic in (*outliers.values(), *known.values()):
        statistic.reduce()
    distance.outliers.fit(distance.levels, outliers, known)
    model.train(training)


def pasted(cfg: CfgNode, items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Inputs with objects of ``INPUT.OUTLIERS`` pasted into their "image" (3, H, W); these have the label
    :data:`OUTLIER_LABEL` in "sem_seg" (H, W), and follow from ``SEED`` and the item's "index" alone."""
    paste = PasteOutliers.from_config(cfg, share=1.0)
    for item in items:
        image = np.ascontiguousarray(item["image"].permute(1, 2, 0).numpy())
        with seeded(max(cfg.SEED, 0), DRAWS, item["index"]):
            objects = paste.get_transform(image)
        image, label = objects.apply_image(image), objects.apply_segmentation(item["sem_seg"].numpy())
        yield item | {"image": torch.from_numpy(image).permute(2, 0, 1), "sem_seg": torch.from_numpy(label)}


def cells(label: Tensor, size: tuple[int, int], num_classes: int) -> tuple[Tensor, Tensor]:
    """label: (H, W) int64, or (1, H, W), size of a feature -> two (h * w,) bool: cells inside objects, and
    those of known classes that no object is near."""
    label = label.view(1, *label.shape[-2:])
    share = F.adaptive_avg_pool2d((label == OUTLIER_LABEL).float(), size)
    near = F.max_pool2d(share, 2 * CLEAR + 1, stride=1, padding=CLEAR) > 0.02
    known = resized_labels(label, size) < num_classes
    return (share >= COVERED).flatten(), (known & ~near).flatten()
