"""Weights and the configs they go with: what weights and thresholds belong to (the classes, and the keys that
change what a network gives though weights fit it all the same), and configs of models that are given some."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from gmm_anomaly.data.build import class_difference, closed_set

from .config import key_values

logger = logging.getLogger(__name__)

# The entry of a checkpoint.
BELONGS_TO = "belongs_to"
CLASSES = "classes"
# Keys and sections: normalisation, channel order, test size; strides and dilations, norms.
OF_WEIGHTS = (
    "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST",
    "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.", "MODEL.TIMM.", "MODEL.MIT.",
    "MODEL.VIT.", "MODEL.DECODER.", "MODEL.MASK2FORMER.ARCHITECTURE.",
)  # fmt: skip
# What scores depend on beside them.
OF_SCORES = (
    "TEST.SCORE_ON", "TEST.MAX_WHOLE_PIXELS", "TEST.SLIDING_WINDOW.", "TEST.AUG.", "MODEL.GMM.REDUCTION",
    "MODEL.GMM.LOGITS", "MODEL.FEATURE_DISTANCE.HYBRID_WITH",
)  # fmt: skip


def with_weights(cfg: CfgNode, path: str | Path) -> CfgNode:
    """A frozen copy of a config, with ``MODEL.WEIGHTS`` the file that its model has."""
    found = cfg.clone()
    found.defrost()
    found.MODEL.WEIGHTS = str(path)
    found.freeze()
    return found


def inference_config(cfg: CfgNode) -> CfgNode:
    """The config with which a model is built that gets complete weights and is not trained.

    Without pretrained weights, which need not be there then, and without the feature memory: at the paper's
    sizes it is gigabytes (6.1 GB with 150 classes of 5 components), and only EM reads it.

    Args:
        cfg: of the training; stays as it is.

    Returns:
        A frozen config. A checkpoint of the training loads into its model.
    """
    light = cfg.clone()
    light.defrost()
    light.MODEL.BACKBONE.WEIGHTS = ""
    light.MODEL.GMM.MEMORY_SIZE = light.MODEL.GMM.SAMPLES_PER_UPDATE
    light.MODEL.GMM.SAVE_MEMORY = False
    light.freeze()
    return light


def belongings(cfg: CfgNode, *, scores: bool = False) -> dict[str, Any]:
    """The names of a config's classes ("classes") and the keys that count, as plain values.

    Args:
        scores: also the keys that change scores, for what belongs to these, such as a threshold.
    """
    metadata = closed_set(cfg) if cfg.MODEL.CLASSIFIER.NAME != "none" else None
    found = {CLASSES: list(metadata.stuff_classes) if metadata else []}
    keys = key_values(cfg)
    for key in sorted(keys):
        value, section = keys[key], key.rpartition(".")[0]
        unused = keys.get(f"{section}.ENABLED") is False and not key.endswith(".ENABLED")
        counts = key.startswith(OF_WEIGHTS + (OF_SCORES if scores else ()))
        if counts and not unused:
            # "SyncBN" is the same norm in several processes.
            value = value.removeprefix("Sync") if isinstance(value, str) else value
            found[key] = list(value) if isinstance(value, tuple) else value
    if cfg.INPUT.MIN_SIZE_TEST <= 0:
        del found["INPUT.MAX_SIZE_TEST"]
    return found


def require_same(
    stored: Mapping[str, Any] | None, found: Mapping[str, Any] | None, what: str, *, strict: bool = True
) -> list[str]:
    """Compare what something was made for with what it is to be used for; where either is not known, nothing
    is. Keys that differ are a warning with both values.

    Args:
        stored, found: from :func:`belongings`. what: of which ``stored`` is, for messages.
        strict: other names of classes, or another order, are an error, else a warning as well.

    Returns:
        The keys that differ, each with both values.

    Raises:
        ValueError: the classes differ.
    """
    stored, found = stored or {}, found or {}
    classes = stored.get(CLASSES), found.get(CLASSES)
    if all(classes) and (differ := class_difference(*classes)):
        message = f"{what}: made for the classes {', '.join(classes[0])}, the config's data sets have " + (
            f"another order, {', '.join(classes[1])}" if differ == "order" else ", ".join(classes[1])
        )
        if strict:
            raise ValueError(
                f"{message}. Register the data sets with the classes it was made for, in their order "
                "(label_map translates the labels)"
            )
        logger.warning("%s", message)
    other = [
        f"{key} was {stored[key]}, is {found[key]}"
        for key in sorted(stored.keys() & found.keys() - {CLASSES})
        if stored[key] != found[key]
    ]
    if other:
        logger.warning("%s: made under another config: %s", what, "; ".join(other))
    return other
