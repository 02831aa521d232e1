"""Measure the largest logit of each predicted class on training images, for the score "sml"."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from gmm_anomaly.gmm.collectives import sum_over_ranks

from .training_images import TrainingImages


@torch.no_grad()
def calibrate_max_logits(cfg: CfgNode, model: nn.Module) -> None:
    """Fit the model's ``max_logit_moments``, if it has them, and keep them in the model.

    All labelled pixels of ``TEST.SML_IMAGES`` evenly spaced images of ``DATASETS.TRAIN``, whole and
    unaugmented, in evaluation mode, at the size they are tested at, each under the class it is predicted as.
    Deterministic. Collective: every rank must call, each takes its share of the images.

    Raises:
        ValueError: ``TEST.SML_IMAGES`` is not positive; no labelled pixel in those images.
    """
    moments = getattr(model, "max_logit_moments", None)
    if moments is None:
        return
    if cfg.TEST.SML_IMAGES < 1:
        raise ValueError(f"TEST.SML_IMAGES: expected at least 1, found {cfg.TEST.SML_IMAGES}")
    images = TrainingImages(cfg)
    chosen = images.evenly_spaced(cfg.TEST.SML_IMAGES)
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    sums = torch.zeros(3, classes, dtype=torch.float64, device=moments.mean.device)
    training = model.training
    model.eval()
    try:
        for index in tqdm(
            chosen, desc="Measuring largest logits", unit="image", disable=not comm.is_main_process()
        ):
            item = images[index]
            largest, predicted = model([{"image": item["image"]}])[0]["sem_seg"].max(dim=0)
            known = item["sem_seg"].to(model.device) < classes
            values, where = largest[known].double(), predicted[known]
            for row, part in zip(sums, (torch.ones_like(values), values, values.square()), strict=True):
                row.index_add_(0, where, part)
    finally:
        model.train(training)
    moments.fit(*sum_over_ranks(sums))
