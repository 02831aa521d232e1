"""Histograms of the scores of known and of anomalous pixels, from the counts the pixel metrics keep."""

from __future__ import annotations

import numpy as np

from gmm_anomaly.metrics.runs import Runs
from gmm_anomaly.metrics.sorted_scores import Ranked

# A few extreme scores would squeeze all others into one bin: this share of either label may lie outside.
OUTSIDE = 0.001


def score_histogram(
    negative: Ranked, positive: Runs, bins: int, *, half: bool = False
) -> dict[str, np.ndarray]:
    """Pixels per bin of the score, for either label.

    Args:
        negative, positive: scores of the known and of the anomalous pixels.
        bins: how many at most; fewer where the scores' type has no more numbers in the range.
        half: scores are float16 numbers: every bin then spans equally many of them, lest the histogram show
            a comb.

    Returns:
        ``edges`` (n + 1,) float64, ascending, from the lower of the 0.1 % quantiles of the two labels' finite
        scores to the higher of their 99.9 % quantiles; ``known``, ``anomalous`` (n,) int64, pixels in
        [edge, next edge), the last bin closed; ``known_outside``, ``anomalous_outside`` (2,) int64, pixels
        below the first and above the last edge. Without a finite score n is 0 and ``edges`` is empty.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    ends = [end for side in (negative, positive) for end in _finite_ends(side)]
    if not ends:
        none, infinite = np.zeros(0, np.int64), (_infinite(negative), _infinite(positive))
        return _histogram(np.zeros(0), (none, none), infinite)
    low, high = min(ends), max(ends)
    if low == high:
        low, high = (float(np.nextafter(np.float32(low), way)) for way in (-np.inf, np.inf))
    # float32 scores are compared with float32 edges, which needs no copy of the scores.
    edges = _half_edges(low, high, bins) if half else np.linspace(low, high, bins + 1)
    edges = np.unique(edges.astype(np.float32))
    counts, outside = zip(*(_count(side, edges) for side in (negative, positive)), strict=True)
    return _histogram(edges.astype(np.float64), counts, outside)


def _half_edges(low: float, high: float, bins: int) -> np.ndarray:
    """At most ``bins`` bins from ``low`` to ``high``, a whole multiple of the coarsest spacing wide."""
    spacing = float(np.spacing(np.float16(max(abs(low), abs(high)))))
    start = np.floor(low / spacing) * spacing
    width = np.ceil((high - start) / bins / spacing) * spacing
    return start + width * np.arange(np.ceil((high - start) / width) + 1)


def _histogram(
    edges: np.ndarray, counts: tuple[np.ndarray, ...], outside: tuple[np.ndarray, ...]
) -> dict[str, np.ndarray]:
    names = ("known", "anomalous")
    return (
        {"edges": edges}
        | dict(zip(names, counts, strict=True))
        | {f"{name}_outside": found for name, found in zip(names, outside, strict=True)}
    )


def _infinite(side: Ranked) -> np.ndarray:
    below = int(side.ranks(np.array([-np.inf], np.float32))[1][0])
    return np.array([below, side.total - below], np.int64)


def _finite_ends(side: Ranked) -> list[float]:
    """The scores between which all finite ones but the outermost lie; empty without a finite score."""
    infinities = np.array([-np.inf, np.inf], np.float32)
    below, up_to = side.ranks(infinities)
    first, last = int(up_to[0]), int(below[1]) - 1
    if last < first:
        return []
    margin = int(OUTSIDE * (last - first))
    return [float(score) for score in side.at_rank(np.array([first + margin, last - margin]))]


def _count(side: Ranked, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below, up_to = side.ranks(edges)
    below[-1] = up_to[-1]
    return np.diff(below), np.array([below[0], side.total - below[-1]], np.int64)
