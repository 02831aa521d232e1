"""A segmentor together with the anomaly scores it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from gmm_anomaly.scores import PixelOutputs, get_scores


class AnomalyScorer(nn.Module):
    """Runs a segmentor once and computes every named score from its outputs.

    Args:
        model: a segmentor in evaluation mode; its classifier says whether it is ``generative``.
        scores: names as in ``TEST.SCORES``. The first one becomes ``anomaly_score``.

    Raises:
        ValueError: an unknown score, or one this model cannot give.
    """

    def __init__(self, model: nn.Module, scores: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.scores = get_scores(scores, generative=model.classifier.generative)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> AnomalyScorer:
        """The scorer for ``TEST.SCORES``; a model wrapped for distributed training is unwrapped."""
        return cls(getattr(model, "module", model), cfg.TEST.SCORES)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the segmentor's, each dict with ``anomaly_scores`` {name: (height, width)} as well."""
        results = self.model(batched_inputs)
        for result in results:
            outputs = PixelOutputs(logits=result["sem_seg"], log_density=result.get("log_density"))
            scores: dict[str, Tensor] = {name: score(outputs) for name, score in self.scores.items()}
            result["anomaly_scores"] = scores
            result["anomaly_score"] = next(iter(scores.values()))
        return results
