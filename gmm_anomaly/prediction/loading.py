"""What a predictor takes from its config, and a checkpoint loaded without a training's remarks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from gmm_anomaly.data.label_rule import CLOSED_SET
from gmm_anomaly.evaluation.overlays import distinct_colors


def device_override(device: str | None) -> list[str]:
    """The override of ``MODEL.DEVICE``: what was given, or the CPU where there is no GPU.

    Raises:
        ValueError: no device, or one that this machine lacks.
    """
    if device is None:
        return [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, found {device!r}") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: there is no {device!r}: torch sees {torch.cuda.device_count()} GPUs")
    return ["MODEL.DEVICE", device]


def class_names_and_colors(cfg: CfgNode) -> tuple[list[str], Sequence[Sequence[int]]]:
    """Names and colours of the classes, from the first closed set of the config."""
    count = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(dataset)
        if metadata.get("evaluator_type") == CLOSED_SET:
            return list(metadata.stuff_classes), metadata.get("stuff_colors") or distinct_colors(count)
    return [f"class {index}" for index in range(count)], distinct_colors(count)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the list of tensors that only training needs; what is missing is an error of its own."""
    loggers = [logging.getLogger(name) for name in ("fvcore.common.checkpoint", "detectron2")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
