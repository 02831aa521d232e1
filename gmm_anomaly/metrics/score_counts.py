"""Streaming counts of scores per label: float16 in a table, float32 exactly and then in bins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from gmm_anomaly.metrics.binned_counts import BinnedCounts
from gmm_anomaly.metrics.protocols import FprRule
from gmm_anomaly.metrics.runs import Runs, TooManyScores, count_half
from gmm_anomaly.metrics.score_blocks import ScoreBlocks
from gmm_anomaly.metrics.sorted_scores import Ranked, SortedScores
from gmm_anomaly.metrics.state import State, array


class ScoreStore(Protocol):
    """What :class:`PixelMetrics` keeps its counts in. Adding and merging give the same state in any order."""

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        """Count one image: (N,) and (P,) scores of its known and anomalous pixels, which may be reordered."""

    def merge(self, other: Any) -> None:
        """Add the counts of another store of the same kind."""

    def state(self) -> State: ...

    def load(self, state: Mapping[str, Any]) -> None: ...

    def totals(self) -> tuple[Ranked, Runs]:
        """The scores of the known pixels, and the runs of the anomalous ones."""

    def intervals(self, rule: FprRule) -> dict[str, tuple[float, float]] | None:
        """Certified intervals where the totals are not exact, else None."""


class HalfCounts:
    """Counts of float16 scores: one per bit pattern, so exact, in 1 MB whatever the number of pixels."""

    def __init__(self) -> None:
        self._negative, self._positive = np.zeros(65536, np.int64), np.zeros(65536, np.int64)

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        self._negative += count_half(negative)
        self._positive += count_half(positive)

    def merge(self, other: HalfCounts) -> None:
        self._negative += other._negative
        self._positive += other._positive

    def state(self) -> State:
        return {"negative_counts": self._negative.copy(), "positive_counts": self._positive.copy()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._negative = array(state, "negative_counts", np.int64).copy()
        self._positive = array(state, "positive_counts", np.int64).copy()

    def totals(self) -> tuple[Runs, Runs]:
        return Runs.from_half_counts(self._negative), Runs.from_half_counts(self._positive)

    def intervals(self, rule: FprRule) -> None:
        return None


class FloatCounts:
    """Counts of float32 scores, exact while there are few enough different ones, then in 2²² bins.

    Pixels wait unsorted until there are ``max_distinct`` of them (4 bytes each), are then sorted and merged
    into runs (12 bytes for each different score of a label). Should the runs outgrow ``max_distinct``, they
    are counted into bins (at most 120 MB), as is all that follows. Which of the two forms a state has depends
    only on the pixels in it, not on their order, so shards merge to the same state however they were cut.

    Args:
        max_distinct: how many different (score, label) pairs are kept exactly.
    """

    def __init__(self, max_distinct: int) -> None:
        self._max_distinct = max_distinct
        self._waiting = (ScoreBlocks(max_distinct), ScoreBlocks(max_distinct))
        self._waiting_pixels = 0
        self._sorted = False
        self._runs = (Runs.empty(), Runs.empty())
        self._bins: BinnedCounts | None = None

    def add(self, negative: np.ndarray, positive: np.ndarray) -> None:
        for waiting, scores in zip(self._waiting, (negative, positive), strict=True):
            waiting.append(scores)
            self._waiting_pixels += scores.size
        self._sorted = False
        if self._waiting_pixels >= self._max_distinct:
            self._collect()

    def merge(self, other: FloatCounts) -> None:
        self._collect()
        other._collect()
        if other._bins is not None:
            self._add_bins(other._bins)
        else:
            self._add_runs(*other._runs)

    def state(self) -> State:
        self._collect()
        if self._bins is not None:
            return {"binned": True} | self._bins.state()
        negative, positive = self._runs
        return {
            "binned": False,
            "negative_scores": negative.values,
            "negative_counts": negative.counts,
            "positive_scores": positive.values,
            "positive_counts": positive.counts,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        if array(state, "binned"):
            self._bins = BinnedCounts.from_state(state)
        else:
            self._runs = (
                Runs.from_state(state, "negative_scores", "negative_counts", np.float32),
                Runs.from_state(state, "positive_scores", "positive_counts", np.float32),
            )

    def totals(self) -> tuple[Ranked, Runs]:
        if self._bins is None and not any(map(len, self._runs)):
            # Nothing outgrew memory yet: sorting is enough, and counting equal scores can be left out.
            negative, positive = (waiting.joined() for waiting in self._waiting)
            if not self._sorted:
                negative.sort()
                positive.sort()
            self._sorted = True
            return SortedScores(negative), Runs.from_scores(positive)
        self._collect()
        return self._runs if self._bins is None else self._bins.totals()

    def intervals(self, rule: FprRule) -> dict[str, tuple[float, float]] | None:
        return None if self._bins is None or self._bins.exact else self._bins.intervals(rule)

    def _collect(self) -> None:
        """Sort the waiting pixels into the runs or bins."""
        if not self._waiting_pixels:
            return
        negative, positive = (waiting.joined() for waiting in self._waiting)
        for waiting in self._waiting:
            waiting.clear()
        self._waiting_pixels = 0
        self._add_runs(Runs.from_scores(negative), Runs.from_scores(positive))

    def _add_runs(self, negative: Runs, positive: Runs) -> None:
        if self._bins is None:
            try:
                merged = Runs.merge([self._runs[1], positive], at_most=self._max_distinct)
                room = self._max_distinct - len(merged)
                self._runs = (Runs.merge([self._runs[0], negative], at_most=room), merged)
                return
            except TooManyScores:
                pass
        self._add_bins(BinnedCounts.from_runs(negative, positive))

    def _add_bins(self, bins: BinnedCounts) -> None:
        if self._bins is None:
            self._bins = BinnedCounts.from_runs(*self._runs)
            self._runs = (Runs.empty(), Runs.empty())
        self._bins = self._bins.merged(bins)
