"""A trained model made into another: one that only predicts, or one with mixtures on its frozen features."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.modeling.scoring import score_names
from gmm_anomaly.postprocess import chain_name

from .belonging import BELONGS_TO, belongings
from .checkpoint import DISTANCES, GUIDE, TAG, Checkpointer
from .config import read_config, with_weights
from .weights import load_weight_file, own_state

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
MIXTURES, MEANS = "classifier.bank.", "classifier.bank.means"
SOFTMAX, SOFTMAX_WEIGHT, SOFTMAX_BIAS = (f"classifier.predictor.{part}" for part in ("", "weight", "bias"))


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


def first_score(cfg: CfgNode) -> str:
    """The score to predict with where none is named: the config's first, with its post-processes."""
    return chain_name(score_names(cfg)[0], cfg.TEST.POSTPROCESS)


def with_run_weights(cfg: CfgNode, config_file: str, overrides: Sequence[Any]) -> CfgNode:
    """The config of a command that makes use of a trained model: what a run started from never stands in for
    what it made.

    Args:
        cfg: of ``config_file``. overrides: ``KEY VALUE`` pairs of the command.

    Returns:
        A config with ``MODEL.WEIGHTS`` as it is, if that is among the overrides or in the folder of the
        config; for a run's config.yaml otherwise that run's last checkpoint that is whole.

    Raises:
        ValueError: the run in ``OUTPUT_DIR`` started from these weights, so that they may not be meant.
    """
    if "MODEL.WEIGHTS" in overrides[::2]:
        return cfg
    folder, file, output = Path(config_file).parent, Path(cfg.MODEL.WEIGHTS), Path(cfg.OUTPUT_DIR)
    if Path(config_file).name == CONFIG and (folder / TAG).is_file():
        if file.is_file() and file.resolve().parent == folder.resolve():
            return cfg
        last = Checkpointer(nn.Identity(), str(folder)).get_checkpoint_file()
        if cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS %s is what a run started from; its last checkpoint is used", file)
        return with_weights(cfg, last)
    if cfg.MODEL.WEIGHTS and (output / TAG).is_file() and (output / CONFIG).is_file():
        if read_config(str(output / CONFIG)).MODEL.WEIGHTS == cfg.MODEL.WEIGHTS:
            raise ValueError(
                f"MODEL.WEIGHTS: the run in {output} (OUTPUT_DIR) started from {file}; add the weights that "
                f"are meant to the command: MODEL.WEIGHTS {output / (output / TAG).read_text().strip()}, or "
                f"MODEL.WEIGHTS {file}"
            )
    return cfg


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
