"""Counting scores on the GPU that has them: :class:`ScoreCounts`, to the last digit; only counts travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gmm_anomaly.metrics.base import anomaly_masks, as_scores, check_same_shape
from gmm_anomaly.metrics.score_counts import ScoreCounts, bins


def split_scores(
    score: Tensor, label: Any, precision: str | None, image: str
) -> tuple[Tensor, Tensor, int, int]:
    """Scores of the known and of the anomalous pixels of an image, rounded; the number of its void ones, and
    of scores that rounding made infinite. Checks what the CPU checks, and waits for the GPU three times.

    Args:
        score: (H, W) floating point, on a GPU. label: (H, W), there or on the host: 0 known, 1 anomaly, 255
            void. precision: "float16", "float32" or None. image: its name, for errors.
    """
    score = score.detach().float() if score.dtype == torch.bfloat16 else score.detach()
    label = torch.as_tensor(label, device=score.device)
    check_same_shape(score, label, "score and label", image)
    rounded = score.to(getattr(torch, precision)) if precision else score
    known, anomalous = label == 0, label == 1
    found = (score.isnan(), known, anomalous, label == 255, score.isinf(), rounded.isinf())
    nans, *labelled, infinite, rounded_infinite = torch.stack([mask.sum() for mask in found]).tolist()
    if nans:
        as_scores(score.cpu().numpy(), image)
    if label.is_floating_point() or sum(labelled) != label.numel():
        anomaly_masks(label.cpu().numpy(), image)
    return rounded[known], rounded[anomalous], labelled[2], rounded_infinite - infinite


def count_scores(
    known: Tensor, anomalous: Tensor, max_distinct: int = 2**63, *, binned: bool = False
) -> ScoreCounts:
    """As :meth:`ScoreCounts.of`; in bins if so asked, or if there are more than ``max_distinct`` scores.

    Args:
        known, anomalous: (N,) and (P,) float16, float32 or float64 of one dtype, without NaN.
    """
    if known.dtype == torch.float16:
        patterns = (side.view(torch.int16).long() & 0xFFFF for side in (known, anomalous))
        counts = torch.stack([torch.bincount(of_side, minlength=65536) for of_side in patterns])
        return ScoreCounts.of_half(counts.cpu().numpy())
    scores, negatives, positives = _counted(known, anomalous)
    binned = binned or len(scores) > max_distinct
    if not binned:
        return ScoreCounts(*_on_host(scores, scores, negatives, positives))
    number = bins(scores.double().view(torch.int64))
    rows = _joined(scores, negatives, positives, number[1:] != number[:-1])
    return replace(ScoreCounts(*_on_host(*rows)), binned=True)


def count_frames(frames: Sequence[tuple[Tensor, Tensor]], max_distinct: int, *, binned: bool) -> ScoreCounts:
    """As :func:`count_scores`, of the known and the anomalous pixels of several frames."""
    known, anomalous = map(torch.cat, zip(*frames, strict=True))
    return count_scores(known, anomalous, max_distinct, binned=binned)


def count_thresholds(known: Tensor, anomalous: Tensor) -> ScoreCounts:
    """As :func:`count_scores`, but with the known pixels between two scores of anomalous ones in one row: AP,
    AUROC, FPR95 and best F1 are the same."""
    scores, known, anomalous = _counted(known, anomalous)
    hit = anomalous > 0
    return ScoreCounts(*_on_host(*_joined(scores, known, anomalous, hit[1:] | hit[:-1])))


def _counted(known: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ascending scores, and the known and the anomalous pixels of each."""
    # −0 becomes 0.
    scores, pixels = torch.unique(torch.cat([known, anomalous]) + 0, return_counts=True)
    hits = torch.bincount(torch.searchsorted(scores, anomalous + 0), minlength=len(scores))
    return scores, pixels - hits, hits


def _joined(scores: Tensor, known: Tensor, anomalous: Tensor, starts: Tensor) -> tuple[Tensor, ...]:
    """Lowest and highest score and the pixels of each run of rows; starts: (n - 1,) bool, whether one begins
    at the second row, the third, ..."""
    first = torch.cat([starts.new_ones(min(len(scores), 1)), starts]).nonzero()[:, 0]
    last = torch.cat([first[1:], first.new_full((min(len(scores), 1),), len(scores))]) - 1
    sums = (side.cumsum(0)[last].diff(prepend=side.new_zeros(1)) for side in (known, anomalous))
    return scores[first], scores[last], *sums


def _on_host(*tensors: Tensor) -> list[Any]:
    return [tensor.cpu().numpy() for tensor in tensors]
