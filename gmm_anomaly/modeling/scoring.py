"""The anomaly scores of a model: which ones the config asks for, and what becomes of their maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from gmm_anomaly.postprocess import apply_chain, chain_name, get_postprocesses
from gmm_anomaly.scores import PixelOutputs, get_scores

# First of the default scores of each classifier; any other one has the softmax's.
OWN_SCORE = {"gmm": "gmm_density", "prototype": "prototype_distance"}
ON_LOGITS = ("msp", "max_logit", "energy", "entropy")
OF_MASKS = ("mask_void", "rba", "maskomaly")
ON_DISTANCES = ("hybrid", "feature_distance")
ON_OUTLIERS = ("exposed_distance", "likelihood_ratio")


def score_names(cfg: CfgNode) -> list[str]:
    """``TEST.SCORES``; where it is empty, what the configured model can give, its own score first."""
    if cfg.TEST.SCORES:
        return list(cfg.TEST.SCORES)
    if cfg.MODEL.META_ARCHITECTURE == "MaskAnomalySegmentor":
        return [*OF_MASKS, *ON_LOGITS]
    exposed = ON_OUTLIERS if cfg.MODEL.OUTLIER.NAME else ()
    if cfg.MODEL.CLASSIFIER.NAME == "none":
        return [*exposed, "feature_distance"]
    own = OWN_SCORE.get(cfg.MODEL.CLASSIFIER.NAME)
    distances = ON_DISTANCES if cfg.MODEL.FEATURE_DISTANCE.FEATURES else ()
    return [*([own] if own else []), *ON_LOGITS, *distances, *exposed]


class Scoring:
    """Scores by name, the post-processes after them, and a rule for what is not finite.

    Args:
        names: as in ``TEST.SCORES``. The first one becomes ``anomaly_score``.
        given: the kinds of outputs that the model gives, see :func:`get_scores`.
        chains: lists of names as in ``TEST.POSTPROCESS``; every score is also given after each of them, as
            ``"score+first+second"``.
        non_finite: ``TEST.NON_FINITE_SCORES``: "stop" raises where a score is NaN or infinite; "anomalous"
            gives such pixels the largest finite score of the map, for what a network cannot say anything
            about is nothing it knows. (Infinity would spread through post-processes and leave the range of
            float16 files.)

    Attributes:
        scores: {name: function}.

    Raises:
        ValueError: an unknown score or post-process, or a score that this model cannot give.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        given: Collection[str],
        chains: Sequence[Sequence[str]] = (),
        non_finite: str = "stop",
    ) -> None:
        self.scores = get_scores(names, given=given)
        self.chains = [get_postprocesses(chain) for chain in chains]
        self.non_finite = non_finite

    @classmethod
    def from_config(cls, cfg: CfgNode, *, given: Collection[str]) -> Scoring:
        # What is asked for on any data set, each chain once.
        asked = map(tuple, (cfg.TEST.POSTPROCESS, *cfg.TEST.POSTPROCESS_OVERRIDES.values()))
        chains = list(dict.fromkeys(filter(None, asked)))
        return cls(score_names(cfg), given=given, chains=chains, non_finite=cfg.TEST.NON_FINITE_SCORES)

    def stacked(self, outputs: PixelOutputs) -> Tensor:
        """Outputs at one resolution -> (S, ..., H, W) scores, in the order of their names."""
        return torch.stack([score(outputs) for score in self.scores.values()])

    def result(self, item: Mapping[str, Any], sem_seg: Tensor, maps: Tensor) -> dict[str, Any]:
        """What a model returns for an image.

        Args:
            item: its input: the image, and its name for messages. sem_seg: (C, H, W).
            maps: (S, H, W), of each score, in their order.

        Raises:
            FloatingPointError: a score that is NaN or infinite, as the rule says.
        """
        image = f"image {item.get('image_id', item.get('file_name', 'without a name'))!r}"
        # One wait for a GPU.
        wrong = maps.isfinite().logical_not().sum(dim=(-2, -1)).tolist()
        scores = {
            name: self._finite(score, count, f"{image}: the score {name!r}") if count else score
            for name, score, count in zip(self.scores, maps, wrong, strict=True)
        }
        plain = list(scores.items())
        if self.chains:
            prediction, seen = sem_seg.argmax(dim=0), item["image"].to(sem_seg.device)
            for chain in self.chains:
                for name, score in plain:
                    scores[chain_name(name, list(chain))] = apply_chain(score, prediction, seen, chain)
        return {"sem_seg": sem_seg, "anomaly_scores": scores, "anomaly_score": plain[0][1]}

    def _finite(self, score: Tensor, wrong: int, what: str) -> Tensor:
        finite = score.isfinite()
        if self.non_finite == "stop" or wrong == score.numel():
            cure = "check the weights (MODEL.WEIGHTS)"
            if wrong < score.numel():
                cure += ", or count such pixels as anomalous with TEST.NON_FINITE_SCORES anomalous"
            raise FloatingPointError(
                f"{what} is NaN or infinite at {wrong} of {score.numel()} pixels; {cure}"
            )
        return torch.where(finite, score, torch.where(finite, score, -torch.inf).max())
