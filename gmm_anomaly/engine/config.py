"""From a config file and overrides to a config that is known to work."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from gmm_anomaly.compat import add_upstream_keys
from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.data import check_num_classes, configure_synthetic
from gmm_anomaly.evaluation.anomaly import check_component_track
from gmm_anomaly.modeling.norm import usable_norm
from gmm_anomaly.modeling.registry import look_up
from gmm_anomaly.modeling.scoring import score_names
from gmm_anomaly.repository_files import find_config
from gmm_anomaly.scores import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    MASKS,
    MAX_LOGIT_MOMENTS,
    get_scores,
)

from .config_merge import merge_file, merge_pairs
from .evaluation import check_postprocesses

logger = logging.getLogger(__name__)


def read_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """All keys, with the values of a file (with its ``_BASE_`` chain) and of ``KEY VALUE`` overrides.

    Args:
        config_file: as :func:`~gmm_anomaly.repository_files.find_config` takes it; "" for the defaults.

    Raises:
        ConfigError: what does not fit the keys. FileNotFoundError: no such config file.
    """
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    add_upstream_keys(cfg)
    if config_file:
        merge_file(cfg, str(find_config(config_file)))
    merge_pairs(cfg, list(overrides))
    return cfg


def build_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a file (with its ``_BASE_`` chain) and ``KEY VALUE`` overrides, checked and frozen.

    ``MODEL.DEVICE`` "cuda" becomes "cpu" where there is no GPU, and "SyncBN" becomes "BN" on the CPU and in a
    run of one process, each with a line in the log.

    Raises:
        ConfigError: a key that does not exist, or a value of another type (a ValueError).
        ValueError: a key whose value cannot work, named with what it expects.
        FileNotFoundError: no such config file.
    """
    cfg = read_config(config_file, overrides)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %r, but there is no GPU: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    for node in (cfg.MODEL.DECODER, cfg.MODEL.RESNETS):
        node.NORM = usable_norm(node.NORM, cfg.MODEL.DEVICE)
    configure_synthetic(cfg)
    _check(cfg)
    cfg.freeze()
    return cfg


def _check(cfg: CfgNode) -> None:
    look_up(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    # Before hours of training, not after them.
    given = {LOGITS}
    if cfg.MODEL.META_ARCHITECTURE == "MaskAnomalySegmentor":
        if cfg.MODEL.COMPILE:
            raise ValueError(
                'MODEL.COMPILE: expected False with the meta-architecture "MaskAnomalySegmentor", found True'
            )
        given.add(MASKS)
    else:
        given.add(MAX_LOGIT_MOMENTS)
        if cfg.MODEL.CLASSIFIER.NAME == "gmm":
            given.add(LOG_DENSITY)
        if cfg.MODEL.FEATURE_DISTANCE.FEATURES:
            given.add(FEATURE_DISTANCE)
    get_scores(score_names(cfg), given=given)
    check_postprocesses(cfg)
    check_component_track(cfg.TEST.COMPONENT_TRACK)
    check_num_classes(cfg)
