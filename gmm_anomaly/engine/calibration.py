"""Fit what a trained network's scores need to know of the training set: one pass for the Gaussians of the
backbone's features, one for the moments that put scores of different units on one scale."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gmm_anomaly.gmm.collectives import sum_over_ranks
from gmm_anomaly.modeling.classifiers import Classified
from gmm_anomaly.modeling.classifiers.gmm_unseen_classes import excluding_unseen_classes
from gmm_anomaly.modeling.feature_distance import EMBEDDING, features_by_name
from gmm_anomaly.modeling.norm import share_statistics
from gmm_anomaly.scores import PixelOutputs
from gmm_anomaly.scores.hybrid import own_evidence

from .max_logit_calibration import calibrate_max_logits
from .training_images import TrainingImages

logger = logging.getLogger(__name__)


class RunningMoments:
    """Mean and standard deviation of values that come in parts, over all ranks. float64."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        values = values.double()
        self.sums += torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])

    def reduce(self) -> tuple[Tensor, Tensor]:
        """Collective. Returns the mean and the standard deviation."""
        count, total, squares = sum_over_ranks(self.sums)
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def needs_calibration(model: nn.Module) -> bool:
    """Whether :func:`calibrate` has something to do."""
    return any(getattr(model, name, None) is not None for name in ("feature_distance", "max_logit_moments"))


def calibrate(cfg: CfgNode, model: nn.Module) -> None:
    """Fit all that the model's scores need to know of training images; collective, every rank must call.

    Raises:
        ValueError: no labelled pixel in those images.
    """
    share_statistics(model)
    with excluding_unseen_classes(model):
        calibrate_distances(cfg, model)
        # Its forward passes give the distances too.
        calibrate_max_logits(cfg, model)


@torch.no_grad()
def calibrate_distances(cfg: CfgNode, model: nn.Module) -> None:
    """Fit the model's :class:`FeatureDistance`, if it has one, on training images, and keep it in the model.

    ``MODEL.FEATURE_DISTANCE.NUM_IMAGES`` evenly spaced images of ``DATASETS.TRAIN``, whole and unaugmented,
    and ``PIXELS_PER_IMAGE`` labelled pixels of each, in evaluation mode. Deterministic. Collective: every
    rank must call, each takes its share of the images.

    Raises:
        ValueError: no labelled pixel in those images.
    """
    distance = model.feature_distance
    if distance is None:
        return
    training = model.training
    model.eval()
    try:
        statistics = {name: distance.statistics(name) for name in distance.names}
        for sample in _samples(cfg, model, "Gaussians of the features"):
            for name, feature in sample.features(distance.names).items():
                values, labels = sample.labelled(feature[0])
                statistics[name].add(values, distance.means_of(labels))
        for name, statistic in statistics.items():
            statistic.reduce()
            distance.levels[name].fit(statistic)

        moments = {name: RunningMoments(model.device) for name in (*distance.names, "evidence")}
        for sample in _samples(cfg, model, "their distances"):
            for name, feature in sample.features(distance.names).items():
                moments[name].add(sample.labelled(distance.log_distance(name, feature))[0])
            moments["evidence"].add(sample.labelled(sample.evidence(distance.evidence))[0])
        for index, name in enumerate(distance.names):
            distance.log_mean[index], distance.log_std[index] = moments[name].reduce()
        for kept, found in zip(distance.evidence_moments(), moments["evidence"].reduce(), strict=True):
            kept.copy_(found)
    finally:
        model.train(training)


class _Sample:
    """One training image's features, and its labelled pixels at any resolution."""

    def __init__(self, model: nn.Module, image: Tensor, label: Tensor, pixels: int) -> None:
        images = model.preprocess([{"image": image}]).tensor
        # Padding has no label.
        self.label = F.pad(
            label, (0, images.shape[-1] - label.shape[1], 0, images.shape[-2] - label.shape[0]), value=255
        )
        self.pyramid: dict[str, Tensor] = model.backbone(images)
        self.model = model
        self.pixels = pixels

    @cached_property
    def classified(self) -> Classified:
        return self.model.classifier(self.model.decoder(self.pyramid).features)

    def features(self, names: Sequence[str]) -> dict[str, Tensor]:
        """{name: (1, F, h, w)}."""
        embedding = self.classified.embedding if EMBEDDING in names else None
        return features_by_name(names, self.pyramid, embedding)

    def evidence(self, kind: str) -> Tensor:
        """(1, h, w): what the score "hybrid" adds to the distances."""
        logits, log_density, _ = self.classified
        maps = PixelOutputs(logits[0], None if log_density is None else log_density[0], evidence=kind)
        return own_evidence(maps)[None]

    def labelled(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """feature: (F, h, w) -> at most ``pixels`` evenly spaced labelled pixels (n, F), and labels (n,)."""
        size = feature.shape[-2:]
        small = F.interpolate(self.label[None, None].float(), size=size, mode="nearest").long().flatten()
        known = torch.nonzero(small < self.model.classifier.num_classes)[:, 0]
        if len(known) > self.pixels:
            known = known[torch.linspace(0, len(known) - 1, self.pixels, device=known.device).long()]
        return feature.flatten(1).T[known], small[known]


def _samples(cfg: CfgNode, model: nn.Module, what: str) -> Iterator[_Sample]:
    keys = cfg.MODEL.FEATURE_DISTANCE
    images = TrainingImages(cfg)
    mine = images.evenly_spaced(keys.NUM_IMAGES)
    for index in tqdm(mine, desc=f"Fitting {what}", unit="image", disable=not comm.is_main_process()):
        item = images[index]
        yield _Sample(model, item["image"], item["sem_seg"].to(model.device), keys.PIXELS_PER_IMAGE)


class CalibrationHook(HookBase):
    """Calibrates before each evaluation, and before the last checkpoint is written."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg = cfg
        self.model = model

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        period = self.cfg.TEST.EVAL_PERIOD
        if done == self.trainer.max_iter or (period > 0 and done % period == 0):
            calibrate(self.cfg, self.model)
