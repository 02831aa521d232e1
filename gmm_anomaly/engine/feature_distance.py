"""Fit what a trained network's scores need to know of the training set: Gaussians of its features, moments
that put scores of different units on one scale, and how large logits are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm

from gmm_anomaly.data import SegmentationMapper
from gmm_anomaly.data.build import train_records
from gmm_anomaly.data.mapper import test_augmentations
from gmm_anomaly.data.outliers import get_source
from gmm_anomaly.data.pairing import Record
from gmm_anomaly.data.reading import image_size
from gmm_anomaly.gmm.collectives import sum_over_ranks
from gmm_anomaly.modeling.feature_distance import features_by_name
from gmm_anomaly.modeling.inference import transformed
from gmm_anomaly.modeling.losses import IGNORE_LABEL, resized_labels
from gmm_anomaly.scores import PixelOutputs
from gmm_anomaly.scores.pixels import hybrid_part

from .evaluation import share_statistics


class LabelledImages(Dataset[dict[str, Any]]):
    """Labelled images as they are tested: inputs with ``image`` and ``sem_seg`` of one size, that of
    ``INPUT.MIN_SIZE_TEST``, without augmentation, of the data set ``name`` or of all in ``DATASETS.TRAIN``.

    Raises:
        ValueError, FileNotFoundError: as ``build_train_loader``.
    """

    def __init__(self, cfg: CfgNode, name: str = "") -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TRAIN = (name,) if name else cfg.DATASETS.TRAIN
        self.records = [record for part in train_records(cfg).values() for record in part]
        options = SegmentationMapper.from_config(cfg, True) | {"augmentations": test_augmentations(cfg)}
        self.mapper = SegmentationMapper(**options)
        self.resize = options["augmentations"]

    def __len__(self) -> int:
        return len(self.records)

    def evenly_spaced(self, count: int) -> list[int]:
        """At most ``count`` evenly spaced images, by index, of those that are not enlarged, if there are any:
        test images are not blurred."""
        pool = [index for index, record in enumerate(self.records) if not self._is_enlarged(record)]
        pool = pool or list(range(len(self)))
        steps = np.unique(np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int))
        return [pool[step] for step in steps]

    def _is_enlarged(self, record: Record) -> bool:
        if not self.resize:
            return False
        (resize,) = self.resize
        height, width = image_size(record)
        shorter = resize.short_edge_length[0]
        return resize.get_output_shape(height, width, shorter, resize.max_size)[0] > height

    def __getitem__(self, index: int) -> dict[str, Any]:
        mapped = self.mapper(self.records[index])
        # The size as stored would enlarge a model's outputs beyond its labels again.
        del mapped["height"], mapped["width"]
        return mapped


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


def padded_label(label: Tensor, images: Tensor) -> Tensor:
    """label (H, W) enlarged to the size of images (1, 3, H', W') that were padded; padding has no label."""
    missing = (0, images.shape[-1] - label.shape[1], 0, images.shape[-2] - label.shape[0])
    return F.pad(label, missing, value=IGNORE_LABEL)


@torch.no_grad()
def fit_feature_distance(cfg: CfgNode, model: nn.Module) -> None:
    """Fit the model's :class:`FeatureDistance`, with its outliers, and :class:`MaxLogitMoments`, where it has
    them, and keep them in the model.

    ``MODEL.FEATURE_DISTANCE.NUM_IMAGES`` evenly spaced images of ``DATASETS.TRAIN``, of those that need not
    be enlarged to the test images' size if there are such, unaugmented, in evaluation mode, at the sizes,
    scales and in the windows that test images are seen in; ``PIXELS_PER_IMAGE`` labelled pixels of each for
    the distances, all of them for the logits. Deterministic. Collective: every rank must call, each takes its
    share of the images.

    Raises:
        ValueError: no labelled pixel in those images.
    """
    distance, moments = (getattr(model, name, None) for name in ("feature_distance", "max_logit_moments"))
    if distance is None and moments is None:
        return
    share_statistics(model)
    training = model.training
    model.eval()
    try:
        if distance is not None:
            items = training_items(cfg, "Fitting distances of features")
            fit_distances(model, items, cfg.MODEL.FEATURE_DISTANCE.PIXELS_PER_IMAGE)
            if distance.outliers is not None:
                from .outliers import fit_outliers  # they work on the windows of this module

                fit_outliers(cfg, model)
        # Its forward passes give the distances too.
        if moments is not None:
            _fit_max_logits(cfg, model)
    finally:
        model.train(training)


@torch.no_grad()
def fit_distances(model: nn.Module, items: Iterable[dict[str, Any]], pixels: int) -> None:
    """Fit the distances of a model in evaluation mode to a stream of images. Collective.

    Args:
        items: this rank's images: "image" (3, H, W), "sem_seg" (H, W) int64 where the classes are known and
            255 elsewhere, and "index", a number of its own over all ranks.
        pixels: how many labelled pixels of an image, evenly spaced, are used on each level.

    Raises:
        ValueError: no labelled pixel at all.
    """
    distance = model.feature_distance
    statistics = {name: distance.statistics(name) for name in distance.names}
    moments = RunningMoments(model.device)
    for item in items:
        for window, (pyramid, outputs, _, taken) in enumerate(windows_of(model, item, pixels)):
            for name, feature in features_by_name(distance.names, pyramid, outputs.embedding).items():
                values, labels = taken(feature[0])
                # Images have fewer windows than this.
                statistics[name].add(values, distance.groups(labels), seed=100_000 * item["index"] + window)
            own = hybrid_part(replace(outputs, hybrid_with=distance.hybrid_with))
            moments.add(taken(own)[0])
    for statistic in statistics.values():
        statistic.reduce()
    distance.fit(statistics)
    mean, std = moments.reduce()
    for kept, found in zip(distance.hybrid_moments, (mean, std if std > 0 else 1.0), strict=True):
        # What never varies adds nothing.
        kept.fill_(float(found))


def _fit_max_logits(cfg: CfgNode, model: nn.Module) -> None:
    classes = model.classifier.num_classes
    sums = torch.zeros(3, classes, dtype=torch.float64, device=model.device)
    for item in training_items(cfg, "Measuring largest logits"):

        def largest(outputs: PixelOutputs) -> Tensor:
            return outputs.logits.amax(dim=-3)[None]

        logits, values = model.infer([{"image": item["image"]}], largest)[0]
        known = item["sem_seg"].to(model.device) < classes
        found, where = values[0][known].double(), logits.argmax(dim=0)[known]
        for row, part in zip(sums, (torch.ones_like(found), found, found.square()), strict=True):
            row.index_add_(0, where, part)
    model.max_logit_moments.fit(*sum_over_ranks(sums))


def _labelled(feature: Tensor, label: Tensor, classes: int, pixels: int) -> tuple[Tensor, Tensor]:
    """feature: (F, h, w) -> at most ``pixels`` evenly spaced labelled pixels (n, F), and labels (n,)."""
    small = resized_labels(label[None], feature.shape[-2:]).flatten()
    known = torch.nonzero(small < classes)[:, 0]
    if len(known) > pixels:
        known = known[torch.linspace(0, len(known) - 1, pixels, device=known.device).long()]
    return feature.flatten(1).T[known], small[known]


def windows_of(
    model: nn.Module, item: dict[str, Any], pixels: int = 1
) -> Iterator[tuple[dict[str, Tensor], PixelOutputs, Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]]:
    """Of each window of a training image its pyramid, its outputs and its label (1, H, W), and what takes at
    most a share of ``pixels`` labelled pixels of a feature there."""
    image, label = model.normalised(item), item["sem_seg"].to(model.device)
    views = [transformed(image, scale) for scale in model.inference.scales]
    grids = [model.inference.windows((view.shape[-2], view.shape[-1])) for view in views]
    share = max(1, pixels // sum(map(len, grids)))
    for view, windows in zip(views, grids, strict=True):
        small = resized_labels(label[None], view.shape[-2:])[0]
        for window in windows:
            images = model.padded([window.cut(view)]).tensor
            own = padded_label(window.cut(small), images)
            taken = partial(_labelled, label=own, classes=model.classifier.num_classes, pixels=share)
            yield *model.outputs(images), own, taken


def training_items(cfg: CfgNode, what: str) -> Iterator[dict[str, Any]]:
    """This rank's images of those that distances are fitted to, each with its number, "index"."""
    images = LabelledImages(cfg)
    chosen = images.evenly_spaced(cfg.MODEL.FEATURE_DISTANCE.NUM_IMAGES)
    mine = chosen[comm.get_rank() :: comm.get_world_size()]
    for index in tqdm(mine, desc=what, unit="image", disable=not comm.is_main_process()):
        yield images[index] | {"index": index}


class FeatureDistanceHook(HookBase):
    """:func:`fit_feature_distance` before each evaluation, and before the last checkpoint is written."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg = cfg
        self.model = model
        if cfg.MODEL.OUTLIER.NAME:
            get_source(cfg.INPUT.OUTLIERS.SOURCE)  # what is wrong with it is told before the training

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        period = self.cfg.TEST.EVAL_PERIOD
        bank = getattr(self.model, "bank", None)
        if bank is not None and not bank.is_fitted:
            return  # there is no evaluation either
        if done == self.trainer.max_iter or (period > 0 and done % period == 0):
            fit_feature_distance(self.cfg, self.model)
