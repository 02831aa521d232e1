"""From config files and ``KEY VALUE`` pairs to a config that is known to work."""

from __future__ import annotations

import json
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from gmm_anomaly.compat import BUNDLED, BUNDLED_FILE, add_upstream_keys, find_config
from gmm_anomaly.config import RELEASED, add_gmm_anomaly_config
from gmm_anomaly.data import check_num_classes, configure_synthetic
from gmm_anomaly.modeling.registry import CLASSIFIER_REGISTRY, look_up, usable_norm
from gmm_anomaly.modeling.scoring import score_names
from gmm_anomaly.scores import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    MASKS,
    MAX_LOGIT_MOMENTS,
    OUTLIER_RATIO,
    get_scores,
)
from gmm_anomaly.values import check_values, unread

from .evaluation import check_postprocesses, check_result_names

logger = logging.getLogger(__name__)

BASE = "_BASE_"
# Detectron2's keys, and beginnings of keys, that nothing here reads; its detectors and loaders do.
IGNORED = (
    "MODEL.LOAD_PROPOSALS", "MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.PROPOSAL_GENERATOR.",
    "MODEL.ANCHOR_GENERATOR.", "MODEL.RPN.", "MODEL.ROI_", "MODEL.RETINANET.", "MODEL.SEM_SEG_HEAD.",
    "MODEL.PANOPTIC_FPN.", "INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN", "INPUT.MASK_FORMAT",
    "DATASETS.PROPOSAL_", "DATASETS.PRECOMPUTED_", "DATALOADER.REPEAT_", "DATALOADER.FILTER_EMPTY_",
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "TEST.KEYPOINT_", "TEST.DETECTIONS_PER_IMAGE", "TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE",
    "TEST.PRECISE_BN.", "VIS_PERIOD", "GLOBAL.HACK",
)  # fmt: skip
# Keys that are paths; "~" is the home folder.
PATHS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "MODEL.MASK2FORMER.WEIGHTS")


class _Loader(yaml.SafeLoader):
    """YAML's own safe loader drops the first of two values of one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"the key {name} is given twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


class ConfigError(ValueError):
    """A config file or a ``KEY VALUE`` pair that no machine could use: the command was given wrongly."""


def config_overrides(args: Namespace) -> list[str]:
    """The command line's ``KEY VALUE`` pairs; ``--num-gpus 0`` is a pair that comes first."""
    return [*(["MODEL.DEVICE", "cpu"] if args.num_gpus == 0 else []), *args.opts]


def read_config(config_file: str = "", overrides: Sequence[Any] = ()) -> CfgNode:
    """All keys, with the values of a file (with its ``_BASE_`` chain) and of ``KEY VALUE`` overrides.

    Files are read as data: tags that call Python are refused, not run.

    Args:
        config_file: as :func:`~gmm_anomaly.compat.find_config` takes it, or the file of a model
            that holds its config; "": the bundled model's if ``MODEL.WEIGHTS`` is "bundled", else the
            defaults.

    Raises:
        ConfigError: what does not fit the keys, or ``MODEL.GMM.RULES``. FileNotFoundError: no such config
            file, or ``_BASE_``.
    """
    cfg = _merged(config_file, overrides, {})
    if cfg.MODEL.GMM.RULES == "released":
        # From its values on, so that a key that asks for a default of ours contradicts it too.
        cfg = _merged(config_file, overrides, RELEASED)
        found = _items(cfg)
        for key, value in RELEASED.items():
            if found[key] != value:
                raise ConfigError(
                    f"{key}: MODEL.GMM.RULES released asks for {value!r}, found {found[key]!r}; leave one of "
                    "the two keys out"
                )
    return cfg


def _merged(config_file: str, overrides: Sequence[Any], defaults: Mapping[str, Any]) -> CfgNode:
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    add_upstream_keys(cfg)
    for key, value in defaults.items():
        _merge_value(cfg, key, value)
    pairs = list(overrides)
    if len(pairs) % 2:
        raise ConfigError(f"expected KEY VALUE pairs, found the key {str(pairs[-1])!r} without a value")
    given = list(zip(pairs[::2], pairs[1::2], strict=True))
    if not config_file and ("MODEL.WEIGHTS", BUNDLED) in given:
        config_file = BUNDLED
    if config_file:
        _merge_file(cfg, find_config(config_file).resolve(), ())
    for key, value in given:
        _merge_value(cfg, key, value)
    for key in PATHS:
        section, _, name = key.rpartition(".")
        node = _items(cfg)[section] if section else cfg
        node[name] = os.path.expanduser(node[name])
    if cfg.MODEL.WEIGHTS == BUNDLED:
        cfg.MODEL.WEIGHTS = str(BUNDLED_FILE)
    return cfg


def build_config(config_file: str = "", overrides: Sequence[Any] = ()) -> CfgNode:
    """The config of a file (with its ``_BASE_`` chain) and ``KEY VALUE`` overrides, checked and frozen.

    ``MODEL.DEVICE`` "cuda" becomes "cpu" where there is no GPU, and "SyncBN" becomes "BN" on the CPU and in a
    run of one process, each with a line in the log; another line names keys of Detectron2 that were set but
    have no effect.

    Raises:
        ConfigError: a key that does not exist, or a value of another type (a ValueError).
        ValueError: a key whose value cannot work, named with what it expects.
        FileNotFoundError: no such config file.
    """
    cfg = read_config(config_file, overrides)
    values = key_values(cfg)
    check_values(values)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %r, but there is no GPU: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    for node in (cfg.MODEL.DECODER, cfg.MODEL.RESNETS):
        node.NORM = usable_norm(node.NORM, cfg.MODEL.DEVICE)
    _warn_of_unread(values, overrides[::2])
    configure_synthetic(cfg)
    _check(cfg)
    cfg.freeze()
    return cfg


def _warn_of_unread(values: Mapping[str, Any], typed: Sequence[Any]) -> None:
    """Name keys that were set and have no effect: of Detectron2's keys any, of the project's own those of the
    command line, for config files share them with twins that read them."""
    upstream, defaults, named = key_values(get_cfg()), key_values(read_config()), []
    for key, value in values.items():
        # Tuples in tuples are lists in a file.
        if key in defaults and json.dumps(value) == json.dumps(defaults[key]):
            continue
        why = unread(key, values) if key in upstream or key in typed else ""
        # The installed Detectron2 may be older than the key, see `add_upstream_keys`.
        if key.startswith(IGNORED) or key == "FLOAT32_PRECISION" and key not in upstream:
            named.append(key)
        elif why:
            named.append(f"{key} ({why})")
    if named:
        logger.warning("Keys that have no effect here: %s", ", ".join(named))


def _check(cfg: CfgNode) -> None:
    architecture = look_up(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    if architecture.__module__.startswith("detectron2."):
        raise ValueError(
            'MODEL.META_ARCHITECTURE: expected "AnomalySegmentor" or "MaskAnomalySegmentor", found '
            f"{cfg.MODEL.META_ARCHITECTURE!r}, which gives no anomaly scores"
        )
    look_up(CLASSIFIER_REGISTRY, cfg.MODEL.CLASSIFIER.NAME, "MODEL.CLASSIFIER.NAME")
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
            given |= {FEATURE_DISTANCE, *([OUTLIER_RATIO] if cfg.MODEL.OUTLIER.NAME else [])}
    get_scores(score_names(cfg), given=given)
    check_postprocesses(cfg)
    check_num_classes(cfg)
    check_result_names(cfg)


def _merge_file(cfg: CfgNode, file: Path, inheriting: tuple[Path, ...]) -> None:
    """Merge the ``_BASE_`` files of ``file``, then what it says itself. ``inheriting``: that led to it."""
    chain = f"--config-file: the _BASE_ chain of {(*inheriting, file)[0]}"
    if not file.is_file():
        raise FileNotFoundError(f"{chain} names {file}, which is not there")
    if file in inheriting:
        raise ConfigError(f"{chain} never ends: {file} is in it twice")
    try:
        text = _inside(file) if file.suffix == ".pth" else file.read_text(encoding="utf-8")
        given = yaml.load(text, _Loader)
        if not isinstance(given, Mapping):
            raise ConfigError(f"expected keys with values, found {type(given).__name__}")
        bases = given.get(BASE, [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"{BASE}: expected a file or a list of files, found {bases!r}")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config-file: {file} is not UTF-8 ({error}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        if isinstance(error, yaml.constructor.ConstructorError):
            why = f"configs hold plain values only, no tags that make or call Python objects; {why}"
        raise ConfigError(f"--config-file: {file} cannot be read as YAML; {why}") from error
    except ConfigError as error:
        raise ConfigError(f"--config-file: {file}: {error}") from None
    for base in bases:
        _merge_file(cfg, (file.parent / Path(base).expanduser()).resolve(), (*inheriting, file))
    try:
        _merge(cfg, given)
    except ConfigError as error:
        raise ConfigError(f"--config-file: {file}: {error}") from None


def _inside(file: Path) -> str:
    """The config that the file of a detector holds."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds
        raise ConfigError(
            f"expected a config or the file of a detector, which cannot be read: {error}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), str):
        raise ConfigError(
            "these weights hold no config, as the file of a detector does (`gmm-anomaly fit`); give the "
            "config.yaml that the training wrote beside them (--config-file)"
        )
    return content["config"]


def _merge(cfg: CfgNode, given: Mapping[Any, Any], prefix: str = "") -> None:
    keys = _items(cfg)
    for name, value in given.items():
        key = f"{prefix}{name}"
        known = keys.get(key)
        if isinstance(known, CfgNode) and isinstance(value, Mapping):
            _merge(cfg, value, f"{key}.")
        elif prefix and (node := keys[prefix[:-1]]).is_new_allowed():
            node[name] = CfgNode(value) if isinstance(value, Mapping) else value
        elif key == "VERSION" and value != known:
            raise ConfigError(f"VERSION: expected {known}, found {value!r}")
        elif key != BASE:
            _merge_value(cfg, key, value)


def _merge_value(cfg: CfgNode, key: str, value: Any) -> None:
    keys = _items(cfg)
    if key not in keys:
        nearest = get_close_matches(key, keys, n=1)
        meant = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(f"there is no config key {key}{meant}")
    known = keys[key]
    if isinstance(known, CfgNode):
        raise ConfigError(f"{key} is a section; give its keys, such as {key}.{next(iter(known), '')}")
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        raise ConfigError(
            f"{key}: expected {type(known).__name__} such as {known!r}, found {value!r}"
        ) from error


def _items(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """All keys, sections too, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in cfg.items():
        found[f"{prefix}{name}"] = value
        if isinstance(value, CfgNode):
            found |= _items(value, f"{prefix}{name}.")
    return found


def key_values(cfg: CfgNode) -> dict[str, Any]:
    """The values of all keys, by their dotted names."""
    return {key: value for key, value in _items(cfg).items() if not isinstance(value, CfgNode)}
