"""A trained network as it is found in a checkpoint, made ready for mixtures on its frozen features."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .checkpoint import DISTANCES, GUIDE, Checkpointer
from .weights import load_weight_file

MIXTURES, MEANS = "classifier.bank.", "classifier.bank.means"
SOFTMAX, SOFTMAX_WEIGHT, SOFTMAX_BIAS = (f"classifier.predictor.{part}" for part in ("", "weight", "bias"))


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
    state = content.get("model", content) if isinstance(content, dict) else {}
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

    is_gmm = trained_classifier(path)[0] == "gmm"
    norms = () if is_gmm else ("classifier.feature_norm.", "classifier.class_norm.")
    checkpointer.load_complete(path, *DISTANCES, MIXTURES, *norms, adapted=adapted)
