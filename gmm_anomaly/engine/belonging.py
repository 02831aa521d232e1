"""Weights and the models they go with: configs of models that are given some, what weights and thresholds
belong to (the classes, and the keys that change what a network gives though weights fit it all the same), and
whether what a file holds is a model's."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from gmm_anomaly.data.build import class_difference, closed_set
from gmm_anomaly.modeling.backbones.weight_names import COUNTER
from gmm_anomaly.modeling.backbones.weights import AVERAGED, state_dicts

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
# What this project adds to pretrained networks: norms of their outputs, a pyramid.
ADDED = ("output_norms.", "simfp_")
# Counters, and statistics that networks without batch norm's (Caffe2's) do not have.
STATISTICS = (COUNTER, "running_mean", "running_var")


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


def own_state(loaded: Any, own: Collection[str], source: str) -> dict[str, Any] | None:
    """The state dict in what a file held that fits best: trainers put it into entries, averaged copies beside
    it, and wrappers something in front of all names. The log says what was taken where that is not plain.

    Args:
        own: names of the model's tensors. source: the file, for messages.

    Returns:
        Tensors or arrays by the model's names and whatever else stands there; None if no name fits.
    """
    fits: list[tuple[int, str, str, dict[str, Any]]] = []
    for path, state in state_dicts(loaded):
        prefixes: Counter[str] = Counter()
        for name in state:
            front, rest = "", name
            while rest:
                if rest in own:
                    prefixes[front] += 1
                part, dot, rest = rest.partition(".")
                front += part + dot
        # A plain name before a wrapped one, an averaged copy last.
        ordered = sorted(prefixes, key=lambda prefix: (bool(AVERAGED.search(prefix)), len(prefix)))
        fits += [(prefixes[prefix], path, prefix, state) for prefix in ordered]
    if not fits:
        return None
    most = max(number for number, *_ in fits)
    best = [fit for fit in fits if fit[0] == most]
    _, path, prefix, state = best[0]
    if path not in ("", "model") or prefix not in ("", "module.") or len(best) > 1:
        taken, *others = ("/".join(filter(None, (p, f"{q}*"))) for _, p, q, _ in best)
        beside = f"; those of {', '.join(others)} are not used" if others else ""
        logger.warning("MODEL.WEIGHTS: the tensors of %s in %s are taken%s", taken, source, beside)
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def check_own_names(model: nn.Module, checkpoint: dict[str, Any], source: str) -> None:
    """Refuse a checkpoint of which nothing would be loaded.

    Args:
        checkpoint: as Detectron2 reads a file, with an entry "model". source: the file, for messages.

    Raises:
        ValueError: none of its names is one of the model, and Detectron2 is not to match them.
    """
    own, names = model.state_dict(), checkpoint["model"]
    if checkpoint.get("matching_heuristics") or own.keys() & names.keys():
        return
    raise ValueError(
        f"MODEL.WEIGHTS: nothing in {source} has a place in the {type(model).__name__}, its tensors are "
        f"called {', '.join([*map(str, names)][:3])}, ... Weights of a backbone alone are "
        "MODEL.BACKBONE.WEIGHTS; a checkpoint of MMSegmentation is converted by gmm-anomaly convert "
        f"--config-file CONFIG {source} OUTPUT.pth"
    )


def check_backbone_filled(missing: Sequence[str], source: str) -> None:
    """Refuse a file that filled the backbone in part.

    Args:
        missing: the model's names that it did not fill. source: the file, for messages.

    Raises:
        ValueError: some of them are of a pretrained network's layers.
    """
    layers = [
        name
        for name in missing
        if name.startswith("backbone.")
        and not name.removeprefix("backbone.").startswith(ADDED)
        and not name.endswith(STATISTICS)
    ]
    if layers:
        raise ValueError(
            f"MODEL.WEIGHTS: {source} leaves {len(layers)} tensors of the backbone unfilled "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}); is it of another network?"
        )
