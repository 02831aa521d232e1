"""From a config file and overrides to a config that is known to work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from gmm_anomaly.compat import add_upstream_keys
from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.data import check_num_classes, configure_synthetic
from gmm_anomaly.evaluation.anomaly import check_component_track
from gmm_anomaly.evaluation.postprocessing import check_postprocesses
from gmm_anomaly.modeling.norm import usable_norm
from gmm_anomaly.modeling.registry import look_up
from gmm_anomaly.scores import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    MASKS,
    MAX_LOGIT_MOMENTS,
    get_scores,
)

logger = logging.getLogger(__name__)


def read_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """All keys, with the values of a file (with its ``_BASE_`` chain) and of ``KEY VALUE`` overrides.

    Raises:
        FileNotFoundError: no such config file.
    """
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    add_upstream_keys(cfg)
    if config_file:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"--config-file: no file {config_file}")
        _merge_file(cfg, config_file)
    cfg.merge_from_list(list(overrides))
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    """Merge a file and its ``_BASE_`` chain as data: tags that call Python are refused, not run."""
    try:
        # Detectron2 by itself would call yaml.unsafe_load.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"--config-file: {config_file}: configs, and their _BASE_ files, hold plain values only, no tags "
            f"that make or call Python objects; {' '.join(str(error).split())}"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"--config-file: {config_file} cannot be read as YAML; {' '.join(str(error).split())}"
        ) from error
    except RecursionError:
        raise ValueError(f"--config-file: the _BASE_ chain of {config_file} never ends") from None


def build_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a file (with its ``_BASE_`` chain) and ``KEY VALUE`` overrides, checked and frozen.

    ``MODEL.DEVICE`` "cuda" becomes "cpu" where there is no GPU, and "SyncBN" becomes "BN" on the CPU and in a
    run of one process, each with a line in the log.

    Raises:
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
        given.add(MASKS)
    else:
        given.add(MAX_LOGIT_MOMENTS)
        if cfg.MODEL.CLASSIFIER.NAME == "gmm":
            given.add(LOG_DENSITY)
        if cfg.MODEL.FEATURE_DISTANCE.FEATURES:
            given.add(FEATURE_DISTANCE)
    get_scores(cfg.TEST.SCORES, given=given)
    check_postprocesses(cfg)
    check_component_track(cfg.TEST.COMPONENT_TRACK)
    check_num_classes(cfg)
