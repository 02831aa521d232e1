"""A segmentor together with the anomaly scores it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from gmm_anomaly.postprocess import apply_chain, chain_name, get_postprocesses
from gmm_anomaly.scores import (
    FEATURE_DISTANCE,
    LOG_DENSITY,
    LOGITS,
    MASKS,
    MAX_LOGIT_MOMENTS,
    MaskOutputs,
    PixelOutputs,
    get_scores,
)

from .finite_scores import check_rule, finite_scores
from .postprocessing import postprocesses_for


class AnomalyScorer(nn.Module):
    """Runs a segmentor once and computes every named score from its outputs.

    Args:
        model: a segmentor in evaluation mode; it or its classifier says which outputs it gives.
        scores: names as in ``TEST.SCORES``. The first one becomes ``anomaly_score``.
        postprocess: names as in ``TEST.POSTPROCESS``; with some, every score is also given after them, as
            ``"score+first+second"``.
        non_finite: what becomes of NaN and infinity in a score, as ``TEST.NON_FINITE_SCORES``.

    Raises:
        ValueError: an unknown score, post-process or rule, or a score this model cannot give.
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Sequence[str],
        postprocess: Sequence[str] = (),
        *,
        non_finite: str = "stop",
    ) -> None:
        super().__init__()
        self.non_finite = check_rule(non_finite)
        self.model = model
        self.scores = get_scores(scores, given=given_outputs(model))
        self.postprocess = get_postprocesses(postprocess)
        distance = getattr(model, "feature_distance", None)
        self.evidence = "density" if distance is None else distance.evidence
        self.evidence_moments = None if distance is None else distance.evidence_moments()

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module, dataset_name: str = "") -> AnomalyScorer:
        """The scorer for ``TEST.SCORES``, with the post-processes for a data set (``TEST.POSTPROCESS``); a
        model wrapped for distributed training is unwrapped.

        Raises:
            ValueError: also a way of inference that this model does not have.
        """
        model = getattr(model, "module", model)
        if getattr(model, "gives_masks", False):
            _require_whole_images(cfg)
        return cls(
            model,
            cfg.TEST.SCORES,
            postprocesses_for(cfg, dataset_name),
            non_finite=cfg.TEST.NON_FINITE_SCORES,
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predictions with every score.

        Returns:
            One dict per image: ``sem_seg`` (C, height, width), ``anomaly_scores`` {name: (height, width)}
            and ``anomaly_score``, the first of them; of a mask model whatever it gives beside these.

        Raises:
            FloatingPointError: a score is NaN or infinite, unless such pixels count as anomalous.
        """
        if getattr(self.model, "gives_masks", False):
            found = [self._score_masks(result) for result in self.model(batched_inputs)]
        else:
            found = [self._score_pixels(evidence) for evidence in self.model.evidence(batched_inputs)]
        return [
            self._named(result, maps, item)
            for (result, maps), item in zip(found, batched_inputs, strict=True)
        ]

    def _score_pixels(self, evidence: Any) -> tuple[dict[str, Any], Iterable[Tensor]]:
        # A strip of the image at a time: densities and temporary maps of all classes never exist as a whole.
        kept, maps = evidence.restore(self._stacked_scores)
        return {"sem_seg": kept["logits"]}, maps

    def _stacked_scores(self, evidence: Any) -> Tensor:
        outputs = PixelOutputs(
            logits=evidence.logits,
            log_density=evidence.log_density,
            feature_distance=evidence.feature_distance,
            evidence=self.evidence,
            evidence_moments=self.evidence_moments,
            max_logit_moments=self._max_logit_moments(),
        )
        return torch.stack([score(outputs) for score in self.scores.values()])

    def _score_masks(self, result: dict[str, Any]) -> tuple[dict[str, Any], Iterable[Tensor]]:
        masks = MaskOutputs(
            result["mask_logits"], result["class_logits"], result["anomaly_queries"], result["road_queries"]
        )
        outputs = PixelOutputs(logits=result["sem_seg"], masks=masks)
        return result, [score(outputs) for score in self.scores.values()]

    def _max_logit_moments(self) -> tuple[Tensor, Tensor] | None:
        return self.model.max_logit_moments.moments() if "sml" in self.scores else None

    def _named(
        self, result: dict[str, Any], maps: Iterable[Tensor], item: Mapping[str, Any]
    ) -> dict[str, Any]:
        image = f"image {item.get('image_id', item.get('file_name', 'without a name'))!r}"
        scores = {
            name: finite_scores(score, self.non_finite, image=image, name=name)
            for name, score in zip(self.scores, maps, strict=True)
        }
        first = next(iter(scores.values()))
        if self.postprocess:
            prediction = result["sem_seg"].argmax(dim=0)
            scores |= {
                chain_name(name, list(self.postprocess)): apply_chain(score, prediction, self.postprocess)
                for name, score in scores.items()
            }
        return result | {"anomaly_scores": scores, "anomaly_score": first}


def given_outputs(model: nn.Module) -> set[str]:
    """The kinds of outputs that a segmentor gives its scores."""
    if getattr(model, "gives_masks", False):
        return {LOGITS, MASKS}
    given = {LOGITS}
    if model.classifier.generative:
        given.add(LOG_DENSITY)
    if model.feature_distance is not None:
        given.add(FEATURE_DISTANCE)
    if getattr(model, "max_logit_moments", None) is not None:
        given.add(MAX_LOGIT_MOMENTS)
    return given


def _require_whole_images(cfg: CfgNode) -> None:
    for key, value, needed in (
        ("TEST.SLIDING_WINDOW.ENABLED", cfg.TEST.SLIDING_WINDOW.ENABLED, False),
        ("TEST.AUG.ENABLED", cfg.TEST.AUG.ENABLED, False),
        ("TEST.SCORE_ON", cfg.TEST.SCORE_ON, "logits"),
    ):
        if value != needed:
            raise ValueError(
                f"{key}: expected {needed!r}, found {value!r}: a mask model (MODEL.META_ARCHITECTURE "
                f"{cfg.MODEL.META_ARCHITECTURE!r}) looks at whole images once, and scores its masks there"
            )
