"""Evaluation of closed-set segmentation: confusion matrix and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmm_anomaly.metrics import CalibrationMetrics, ConfusionMetrics

from .files import closed_set_overlay
from .records import RecordEvaluator
from .results import CLOSED_SET, TaskResult

# Pixels predicted at once on a CPU: their logits then stay in its cache.
_CPU_CHUNK = 2**14


class ClosedSetEvaluator(RecordEvaluator):
    """IoU, accuracy and calibration of the classes predicted on one data set.

    ``process`` takes outputs with ``sem_seg`` (C, H, W), float logits of the size of the image's label.

    Args:
        dataset_name: a registered data set with ``evaluator_type`` "closed_set" or Detectron2's "sem_seg",
            ``stuff_classes`` and labels.
        distributed: merge over the ranks.
        output_dir: folder for overlays.
        num_visualizations: overlays of the first so many images of the data set, in
            ``output_dir/visualizations/<data set>/<image id>.png``.

    Raises:
        ValueError: a data set that cannot be evaluated so, or overlays wanted without ``output_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | Path | None = None,
        num_visualizations: int = 0,
    ) -> None:
        if output_dir is None and num_visualizations:
            raise ValueError("num_visualizations needs output_dir")
        super().__init__(dataset_name, "closed_set", distributed, output_dir, num_visualizations)
        self.class_names = list(self.records.metadata.get("stuff_classes") or ())
        if not self.class_names:
            raise ValueError(f"{self.records.name}: its metadata lack stuff_classes, its classes' names")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # Labels are read with 255 for what is ignored, whatever it is in the files.
        self._confusion = ConfusionMetrics(len(self.class_names), self.class_names)
        self._calibration = CalibrationMetrics()

    def _count(self, index: int, output: Mapping[str, Any], where: str) -> None:
        label = self.records.label(index)
        logits = output["sem_seg"]
        if tuple(logits.shape) != (len(self.class_names), *label.shape):
            raise ValueError(
                f"{where}: sem_seg must be {(len(self.class_names), *label.shape)} (classes, height and "
                f"width of the label), found {tuple(logits.shape)}; check MODEL.CLASSIFIER.NUM_CLASSES and "
                "the size"
            )
        prediction, confidence = predict_classes(logits)
        broken = int(np.isnan(confidence).sum())
        if broken:
            raise ValueError(f"{where}: the logits of {broken} pixels are NaN or infinite")
        try:
            self._confusion.update(prediction, label, self.records.image_id(index))
        except ValueError as error:
            raise ValueError(f"{self.records.name}: {error}") from error
        self._calibration.update(confidence, pred=prediction, label=label, name=self.records.image_id(index))
        if index in self._drawn and self.output_dir is not None:
            closed_set_overlay(self.records, index, prediction, self.output_dir)

    def evaluate(self) -> dict[str, TaskResult] | None:
        """Results of everything processed since the last ``reset``; collective, every rank must call.

        Returns:
            On rank 0 {"sem_seg": ``mIoU``, ``fwIoU``, ``mACC``, ``pACC``, ``ECE``, ``IoU-<class>``,
            ``ACC-<class>``}, all in percent, under the names of Detectron2's ``SemSegEvaluator``; None on the
            other ranks. Unlike there, a class that is predicted but never labelled has IoU 0 and enters the
            mean, as in MMSegmentation.

        Raises:
            ValueError: no image was processed, or one by several ranks.
        """
        self._check_coverage()
        confusion, calibration = self._merged(self._confusion), self._merged(self._calibration)
        if confusion is None or calibration is None:
            return None
        found, calibrated = confusion.compute(), calibration.compute()
        percent = {
            "mIoU": 100 * found["mIoU"],
            "fwIoU": 100 * found["fwIoU"],
            "mACC": 100 * found["mAcc"],
            "pACC": 100 * found["aAcc"],
            "ECE": 100 * calibrated["ECE"],
        }
        for key, values in (("IoU", found["IoU"]), ("ACC", found["Acc"])):
            for name, value in zip(self.class_names, values, strict=True):
                percent[f"{key}-{name}"] = 100 * value
        details = {
            "class_names": self.class_names,
            "convention": found["convention"],
            "num_bins": calibrated["num_bins"],
            "images": found["images"],
            "pixels": found["pixels"],
            "note": found["note"],
            "reliability_curve": calibration.curve(),
        }
        return {CLOSED_SET: TaskResult(percent, details)}


def predict_classes(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class of the largest logit, and its softmax probability.

    Args:
        logits: (C, H, W) float on any device.

    Returns:
        prediction: (H, W) uint8 (int64 beyond 256 classes). confidence: (H, W) float32, NaN where a logit is
            NaN or infinitely large.
    """
    classes, height, width = logits.shape
    flat = logits.detach().reshape(classes, -1)
    parts = flat.split(_CPU_CHUNK, dim=1) if flat.device.type == "cpu" else (flat,)
    predictions, confidences = [], []
    for part in parts:
        part = part.float()
        largest = part.amax(dim=0)
        predictions.append(_first_equal(part, largest))
        confidences.append((part - largest).exp_().sum(dim=0).reciprocal_())
    prediction, confidence = torch.cat(predictions), torch.cat(confidences)
    return prediction.view(height, width).cpu().numpy(), confidence.view(height, width).cpu().numpy()


def _first_equal(logits: Tensor, largest: Tensor) -> Tensor:
    """Lowest class whose logit is the largest; (C, N), (N,) to (N,).

    A tenth of the time of ``logits.max(dim=0)`` on a CPU, which is not vectorised over the other dimension.
    """
    classes = len(logits)
    if classes > 256:
        return logits.argmax(dim=0)
    rank = 255 - torch.arange(classes, dtype=torch.uint8, device=logits.device)
    return 255 - ((logits == largest).view(torch.uint8) * rank[:, None]).amax(dim=0)
