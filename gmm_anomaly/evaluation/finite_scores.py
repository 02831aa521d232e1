"""NaN and infinity in score maps."""

from __future__ import annotations

import torch
from torch import Tensor

RULES = ("stop", "anomalous")


def check_rule(rule: str) -> str:
    if rule not in RULES:
        raise ValueError(f"TEST.NON_FINITE_SCORES: expected one of {', '.join(RULES)}, found {rule!r}")
    return rule


def finite_scores(scores: Tensor, rule: str, *, image: str, name: str) -> Tensor:
    """A score map without NaN and infinity.

    Args:
        scores: (H, W) floating point, higher = more anomalous.
        rule: "stop" raises where a score is not finite; "anomalous" gives such pixels the largest finite
            score of the map, for what a network cannot say anything about is nothing it knows. (Infinity
            would spread through post-processes and leave the range of float16 files.)
        image, name: of the image and of the score, for messages.

    Returns:
        (H, W), ``scores`` itself where all of them are finite.

    Raises:
        FloatingPointError: scores that are not finite, under "stop"; no finite score, under either.
    """
    finite = scores.isfinite()
    wrong = int((~finite).sum())
    if not wrong:
        return scores
    if rule == "stop" or wrong == scores.numel():
        cure = "check the weights (MODEL.WEIGHTS)"
        if wrong < scores.numel():
            cure += ", or count such pixels as anomalous with TEST.NON_FINITE_SCORES anomalous"
        raise FloatingPointError(
            f"{image}: the score {name!r} is NaN or infinite at {wrong} of {scores.numel()} pixels; {cure}"
        )
    largest = torch.where(finite, scores, -torch.inf).max()
    return torch.where(finite, scores, largest)
