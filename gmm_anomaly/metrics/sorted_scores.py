"""Sorted scores, counted only where asked: what numbers are computed from while all pixels fit in memory."""

from __future__ import annotations

import numpy as np

from gmm_anomaly.metrics.runs import Runs

# So many neighbouring questions are looked up in one short stretch of the scores, which stays in the cache.
_BLOCK = 2048


class SortedScores:
    """The scores of some pixels in ascending order, equal ones side by side.

    It answers the same questions as :class:`~gmm_anomaly.metrics.runs.Runs`. The metrics only need ranks
    among the known pixels, and counting equal scores would cost as much again as sorting them.

    Args:
        scores: (N,) float32 or float64 without NaN, in ascending order.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores
        self.total = scores.size

    def ranks(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many scores are below, and how many at or below each of ``at`` (ascending); int64."""
        first = np.arange(0, len(at), _BLOCK)
        last = np.minimum(first + _BLOCK, len(at)) - 1
        starts = np.searchsorted(self.scores, at[first], side="left")
        ends = np.searchsorted(self.scores, at[last], side="right")
        below = np.repeat(starts, last - first + 1)
        up_to = below.copy()
        for block, start, end in zip(first, starts, ends, strict=True):
            if start == end:
                continue
            here = slice(block, block + _BLOCK)
            near, wanted = self.scores[start:end], at[here]
            before = near.searchsorted(wanted, side="left")
            below[here] += before
            up_to[here] += before
            # Few are equal to a score as a rule; the others need no second search.
            equal = np.flatnonzero(near.take(before, mode="clip") == wanted)
            up_to[block + equal] = start + near.searchsorted(wanted[equal], side="right")
        return below, up_to

    def at_rank(self, rank: np.ndarray) -> np.ndarray:
        """The score with ``rank`` lower or equal ones before it, 0 being the lowest."""
        return self.scores[rank] + 0.0  # + 0.0 turns −0 into 0


Ranked = Runs | SortedScores


def ranked(scores: np.ndarray) -> Ranked:
    """Put (N,) scores without NaN in order: float32 and float64 are sorted in place, float16 are counted."""
    if scores.dtype == np.float16:
        return Runs.from_scores(scores)
    scores.sort()
    return SortedScores(scores)
