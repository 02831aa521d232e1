"""A trained network as it is found in a checkpoint, made ready for mixtures on its frozen features."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .checkpoint import FITTED, GUIDE, Checkpointer
from .weights import load_weight_file

MIXTURES = "classifier.bank."
SOFTMAX, SOFTMAX_BIAS = "classifier.predictor.", "classifier.predictor.bias"
MEANS = "classifier.bank.means"


class TrainedClassifier(NamedTuple):
    """name: "gmm", "softmax" or "prototype"; num_classes: C."""

    name: str
    num_classes: int


def trained_classifier(path: str) -> TrainedClassifier:
    """Which classifier the network in a checkpoint was trained with.

    Raises:
        ValueError: no path, or no network of this project in the file.
        FileNotFoundError: no such file.
    """
    if not path:
        raise ValueError("MODEL.WEIGHTS: --fit-mixture needs a trained network; add MODEL.WEIGHTS FILE")
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"MODEL.WEIGHTS: no file {path}")
    content = load_weight_file(PathManager.get_local_path(path))
    state = content.get("model", content) if isinstance(content, dict) else {}
    if MEANS in state:
        return TrainedClassifier("gmm", len(state[MEANS]))
    weight = SOFTMAX + "weight"
    if weight not in state:
        raise ValueError(
            f"MODEL.WEIGHTS: expected a network with a trained classifier, found none in {path}: {weight} "
            f"and {MEANS} are missing"
        )
    return TrainedClassifier("softmax" if SOFTMAX_BIAS in state else "prototype", len(state[weight]))


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
    found = trained_classifier(cfg.MODEL.WEIGHTS)
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    if found.num_classes != classes:
        raise ValueError(
            f"MODEL.WEIGHTS: the checkpoint was trained with {found.num_classes} classes, "
            f"MODEL.CLASSIFIER.NUM_CLASSES is {classes}; use the config it was trained with"
        )
    fitted = cfg.clone()
    fitted.defrost()
    fitted.MODEL.CLASSIFIER.NAME = "gmm"
    keys = fitted.MODEL.GMM
    if found.name != "gmm":
        keys.PROJECTION = "none"
    if found.name == "prototype":
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


class FrozenNetworkCheckpointer(Checkpointer):
    """Loads a trained network under mixtures that are yet to be fitted."""

    def load_network(self, path: str) -> None:
        """Load everything but what the fit makes. Mixtures of the same sizes are kept: EM goes on with them.

        Raises:
            ValueError: a checkpoint that lacks tensors of the network, or whose shapes differ.
        """
        unfitted: tuple[str, ...] = (MIXTURES,)
        if trained_classifier(path).name != "gmm":
            unfitted += ("classifier.feature_norm.", "classifier.class_norm.")
        self._dispensable = (*self._training_state(), *FITTED, *unfitted)
        self._adapting = True
        try:
            self.load(path, checkpointables=[])
        finally:
            self._dispensable, self._adapting = None, False

    _adapting = False

    def _load_model(self, checkpoint: Any) -> Any:
        if self._adapting:
            checkpoint = {**checkpoint, "model": self._adapted(checkpoint["model"])}
        return super()._load_model(checkpoint)

    def _adapted(self, state: dict[str, Any]) -> dict[str, Any]:
        if MEANS not in state:
            others = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
            if SOFTMAX_BIAS not in state:
                return others
            softmax = {f"{GUIDE}predictor.{part}": state[SOFTMAX + part] for part in ("weight", "bias")}
            return others | softmax
        if state[MEANS].shape == self.model.bank.means.shape:
            self.logger.info("EM goes on with the mixtures of the checkpoint")
            return state
        return {name: tensor for name, tensor in state.items() if not name.startswith(MIXTURES)}
