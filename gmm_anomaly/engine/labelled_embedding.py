"""What mixtures see of a labelled image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def labelled_embedding(model: nn.Module, item: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embedding (n, D) and labels (n,) of one image's labelled pixels, at the resolution of its features.

    Args:
        model: a segmentor with a GMM classifier, in evaluation mode.
        item: ``image`` (3, H, W) and ``sem_seg`` (H, W).
    """
    images = model.preprocess([item]).tensor
    features = model.decoder(model.backbone(images)).features
    label = item["sem_seg"].to(images.device)
    # Padding has no label.
    missing = (0, images.shape[-1] - label.shape[1], 0, images.shape[-2] - label.shape[0])
    label = F.pad(label, missing, value=255)[None, None].float()
    small = F.interpolate(label, size=features.shape[-2:], mode="nearest").long().flatten()
    known = small < model.classifier.num_classes
    return model.classifier.embed(features)[known], small[known]
