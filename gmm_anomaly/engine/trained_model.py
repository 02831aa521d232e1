"""A trained model made into another: one that only predicts, or one with mixtures on its frozen features."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.modeling.backbones.weights import load_weight_file
from gmm_anomaly.modeling.scoring import score_names
from gmm_anomaly.postprocess import chain_name

from .belonging import BELONGS_TO, belongings, inference_config, own_state, with_weights
from .checkpoint import DISTANCES, GUIDE, Checkpointer

logger = logging.getLogger(__name__)

MIXTURES, MEANS = "classifier.bank.", "classifier.bank.means"
SOFTMAX, SOFTMAX_WEIGHT, SOFTMAX_BIAS = (f"classifier.predictor.{part}" for part in ("", "weight", "bias"))


def first_score(cfg: CfgNode) -> str:
    """The score to predict with where none is named: the config's first, with its post-processes."""
    return chain_name(score_names(cfg)[0], cfg.TEST.POSTPROCESS)


def save_model(
    cfg: CfgNode,
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    threshold: dict[str, Any] | None = None,
) -> None:
    """Write a model to hand on, with its config, into one file: commands take it for ``--weights`` and need
    no ``--config-file``. The file appears whole or not at all.

    Args:
        cfg: of the model. path: of the file.
        half: halve the precision of parameters. Buffers (moments of norms, mixtures, distances) are small and
            stay as they are.
        threshold: the entries of a :class:`~gmm_anomaly.predict.threshold.Threshold` to predict with.
    """
    halved = {name for name, _ in model.named_parameters()} if half else set()
    state = {
        name: value.cpu().half() if name in halved else value.cpu()
        for name, value in model.state_dict().items()
    }
    # The file may be moved: whoever uses it names it.
    config = with_weights(inference_config(cfg), "").dump()
    content = {"model": state, "config": config, "threshold": threshold, BELONGS_TO: belongings(cfg)}
    with replacing(Path(path)) as temporary:
        torch.save(content, temporary)


def trained_classifier(path: str) -> tuple[str, int]:
    """Which classifier the network in a checkpoint was trained with: "gmm", "softmax" or "prototype", and its
    number of classes.

    Raises:
        ValueError: no path, or no network of this project in the file.
        FileNotFoundError: no such file.
    """
    if not path:
        raise ValueError("MODEL.WEIGHTS: --fit-mixture needs a trained network; add MODEL.WEIGHTS FILE")
    content = load_weight_file(PathManager.get_local_path(path))
    state = own_state(content, (MEANS, SOFTMAX_WEIGHT), path) or {}
    if MEANS in state:
        return "gmm", len(state[MEANS])
    if SOFTMAX_WEIGHT in state:
        return "softmax" if SOFTMAX_BIAS in state else "prototype", len(state[SOFTMAX_WEIGHT])
    raise ValueError(
        f"MODEL.WEIGHTS: expected a network with a trained classifier, found none in {path}: "
        f"{SOFTMAX_WEIGHT} and {MEANS} are missing"
    )


def fitting_config(cfg: CfgNode) -> CfgNode:
    """The config of the network in ``MODEL.WEIGHTS`` with mixtures for a classifier.

    A network that has mixtures keeps its embedding. Of any other one the decoder's features become the
    embedding as they are (``MODEL.GMM.PROJECTION`` "none"), and a softmax classifier stays beside the
    mixtures (``MODEL.GMM.LOGITS``).

    Args:
        cfg: the network's config, or that of a twin with another classifier.

    Raises:
        ValueError: another meta-architecture or number of classes, or softmax logits of a network that has
            none. Others, and FileNotFoundError, as :func:`trained_classifier`.
    """
    if cfg.MODEL.META_ARCHITECTURE != "AnomalySegmentor":
        raise ValueError(
            'MODEL.META_ARCHITECTURE: --fit-mixture needs the pixel features of an "AnomalySegmentor", found '
            f"{cfg.MODEL.META_ARCHITECTURE!r}"
        )
    name, classes = trained_classifier(cfg.MODEL.WEIGHTS)
    if classes != cfg.MODEL.CLASSIFIER.NUM_CLASSES:
        raise ValueError(
            f"MODEL.WEIGHTS: the checkpoint was trained with {classes} classes, MODEL.CLASSIFIER.NUM_CLASSES "
            f"is {cfg.MODEL.CLASSIFIER.NUM_CLASSES}; use the config it was trained with"
        )
    fitted = cfg.clone()
    fitted.defrost()
    fitted.MODEL.CLASSIFIER.NAME = "gmm"
    keys = fitted.MODEL.GMM
    if name != "gmm":
        if keys.RULES == "released":
            raise ValueError(
                'MODEL.GMM.RULES: expected "ours", found "released", whose projection would have to be '
                f"trained: {cfg.MODEL.WEIGHTS} has none"
            )
        keys.PROJECTION = "none"
    if name == "prototype":
        if keys.LOGITS == "softmax":
            raise ValueError(
                f'MODEL.GMM.LOGITS: expected "density", found "softmax": {cfg.MODEL.WEIGHTS} has no softmax '
                "classifier"
            )
        keys.GUIDE_WEIGHT = 0.0
    if not {"gmm_density", "gmm_likelihood", "hybrid"} & set(fitted.TEST.SCORES):
        fitted.TEST.SCORES = ["gmm_density", *fitted.TEST.SCORES]
    fitted.freeze()
    return fitted


def load_network(checkpointer: Checkpointer, path: str) -> None:
    """Load all of a trained network but what a fit makes into a model of :func:`fitting_config`. Mixtures of
    the same sizes are kept: EM goes on with them.

    Raises:
        ValueError: a checkpoint that lacks tensors of the network, or whose shapes differ.
    """
    size = checkpointer.model.bank.means.shape

    def adapted(state: dict[str, Any]) -> dict[str, Any]:
        if MEANS in state and state[MEANS].shape == size:
            return state
        unfit = MIXTURES if MEANS in state else "classifier."
        found = {name: tensor for name, tensor in state.items() if not name.startswith(unfit)}
        if SOFTMAX_BIAS in state:
            found |= {f"{GUIDE}predictor.{part}": state[SOFTMAX + part] for part in ("weight", "bias")}
        return found

    # Other classifiers have no such norms.
    norms = ("classifier.feature_norm.", "classifier.class_norm.")
    checkpointer.load_complete(path, *DISTANCES, MIXTURES, *norms, adapted=adapted)
