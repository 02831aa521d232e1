"""How well the mixtures are, in TensorBoard: numbers and a picture from a few labelled images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from gmm_anomaly.data.reading import CLOSED_SET, has_label
from gmm_anomaly.data.registration import get_records
from gmm_anomaly.evaluation.files import distinct_colors
from gmm_anomaly.gmm.health import pixel_health
from gmm_anomaly.modeling.losses import resized_labels
from gmm_anomaly.visualization import plot_embedding

from .feature_distance import LabelledImages, padded_label

logger = logging.getLogger(__name__)

IMAGES, PIXELS_PER_IMAGE = 4, 4096


class HealthHook(HookBase):
    """Writes the health of a model's mixtures on fixed images every few iterations, and after the last one.

    Of at most 4096 evenly spaced labelled pixels an image, in evaluation mode: how many components each class
    effectively uses, how sharply pixels belong to one, their log-likelihood, and a picture of their
    embeddings on the plane of the largest variance with all components' ellipses of one standard deviation.
    Draws no random number and changes nothing, so that a training ends the same with and without it. Not
    collective: for the main process alone.

    Args:
        model: a segmentor with a GMM classifier, not wrapped.
        images: dicts with ``image`` (3, H, W) uint8 and ``sem_seg`` (H, W) int64, 255 ignored.
        dataset: the registered data set that they are of. held_out: whether it is none of the training sets.
        period: iterations from one look to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[dict[str, Tensor]],
        dataset: str,
        *,
        held_out: bool,
        period: int,
    ) -> None:
        self.model = model
        self.images = images
        self.dataset = dataset
        self.held_out = held_out
        self.period = period
        metadata = MetadataCatalog.get(dataset)
        self.names = list(metadata.stuff_classes)
        self.colors = metadata.get("stuff_colors") or distinct_colors(len(self.names))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # Before the first warm start there is nothing to look at.
        if (done % self.period == 0 or done == self.trainer.max_iter) and self.model.bank.is_fitted:
            features, labels = self._pixels()
            if len(labels):
                self._write_numbers(features, labels)
                self._draw(features, labels, f"{self.dataset}, iteration {done}")

    def _pixels(self) -> tuple[Tensor, Tensor]:
        training = self.model.training
        self.model.eval()
        try:
            parts = []
            for item in self.images:
                features, labels = labelled_embedding(self.model, item)
                count = min(len(labels), PIXELS_PER_IMAGE)
                chosen = torch.linspace(0, len(labels) - 1, count, dtype=torch.float64).long()
                parts.append((features[chosen.to(labels.device)], labels[chosen.to(labels.device)]))
        finally:
            self.model.train(training)
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        finite = features.isfinite().all(dim=1)
        return features[finite], labels[finite]

    def _write_numbers(self, features: Tensor, labels: Tensor) -> None:
        health = pixel_health(self.model.bank, features, labels)
        effective = health.effective_components
        numbers = {
            "assignment_entropy": health.assignment_entropy,
            # Of training pixels it says less: a name of its own, lest two runs be compared by it.
            ("held_out" if self.held_out else "train") + "_log_likelihood": health.log_likelihood,
            "effective_components": float(effective.nanmean()),
        } | {
            f"effective_components/{name}": number
            for name, number in zip(self.names, effective.tolist(), strict=True)
        }
        for name, number in numbers.items():
            if not math.isnan(number):
                self.trainer.storage.put_scalar(f"gmm/{name}", number, smoothing_hint=False)

    def _draw(self, features: Tensor, labels: Tensor, title: str) -> None:
        bank = self.model.bank
        owners = torch.arange(bank.num_classes, device=labels.device)[:, None].expand_as(bank.fitted)
        arrays = features, labels, *(part[bank.fitted] for part in (bank.unit_means, bank.scales, owners))
        numbers = [array.cpu().numpy() for array in arrays]
        picture = plot_embedding(*numbers, self.colors, self.names, title=title)
        self.trainer.storage.put_image("gmm/embedding", picture.transpose(2, 0, 1))


@torch.no_grad()
def labelled_embedding(model: nn.Module, item: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embedding (n, D) and labels (n,) of one image's labelled pixels, at the resolution of its features.

    Args:
        model: a segmentor with a GMM classifier, in evaluation mode.
        item: ``image`` (3, H, W) and ``sem_seg`` (H, W).
    """
    images = model.preprocess([item]).tensor
    features = model.decoder(model.backbone(images)).features
    label = padded_label(item["sem_seg"].to(images.device), images)
    small = resized_labels(label[None], features.shape[-2:]).flatten()
    known = small < model.classifier.num_classes
    return model.classifier.embed(features)[known], small[known]


def health_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """The hook for a model with mixtures, in the main process, unless ``MODEL.GMM.HEALTH_PERIOD`` is 0.

    It looks at four evenly spaced images of the first closed set with labels in
    ``DATASETS.TEST``, or of the first training set where there is none, at the size they are tested at.

    Raises:
        ValueError: a key out of range. Others as ``build_train_loader``.
    """
    period = cfg.MODEL.GMM.HEALTH_PERIOD
    if getattr(model, "bank", None) is None or period == 0 or not comm.is_main_process():
        return []
    for name in cfg.DATASETS.TEST:
        if MetadataCatalog.get(name).get("evaluator_type") == CLOSED_SET and all(
            map(has_label, get_records(name))
        ):
            break
    else:
        name = cfg.DATASETS.TRAIN[0]
    held_out = name not in cfg.DATASETS.TRAIN
    labelled = LabelledImages(cfg, name)
    images = [labelled[index] for index in labelled.evenly_spaced(IMAGES)]
    kind = "held out" if held_out else "not held out, for DATASETS.TEST has no other closed set"
    logger.info("The mixtures' health is measured on %d images of %s (%s)", len(images), name, kind)
    return [HealthHook(model, images, name, held_out=held_out, period=period)]
