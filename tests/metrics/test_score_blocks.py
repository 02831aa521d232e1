"""Scores put aside in blocks, against a list of arrays that is concatenated."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gmm_anomaly.metrics.own_pages import own_pages
from gmm_anomaly.metrics.score_blocks import ScoreBlocks

SIZES = st.lists(st.one_of(st.integers(0, 9), st.sampled_from(["join", "sort", "clear"])), max_size=30)


@given(SIZES, st.integers(1, 8))
def test_any_sequence_is_that_of_a_list(steps, capacity):
    rng = np.random.default_rng(0)
    blocks, expected = ScoreBlocks(capacity), np.empty(0, np.float32)
    for step in steps:
        if step == "clear":
            blocks.clear()
            expected = np.empty(0, np.float32)
        elif step == "join":
            blocks.joined()
        elif step == "sort":
            blocks.joined().sort()
            expected = np.sort(expected)
        else:
            scores = rng.normal(size=step).astype(np.float32)
            blocks.append(scores)
            expected = np.concatenate([expected, scores])
            scores[:] = np.nan  # they were copied
    found = blocks.joined()
    assert found.dtype == np.float32 and found.tobytes() == expected.tobytes()


def test_an_array_handed_out_is_not_written_to_again():
    blocks = ScoreBlocks(8)
    blocks.append(np.float32([3, 1, 2]))
    first = blocks.joined()
    blocks.append(np.float32([5, 4]))
    blocks.joined().sort()
    assert first.tolist() == [3, 1, 2]


def test_blocks_are_as_large_as_the_limit_of_the_metrics_at_most(monkeypatch):
    made: list[int] = []

    def counted(shape, dtype):
        made.append(*shape)
        return own_pages(shape, dtype)

    monkeypatch.setattr("gmm_anomaly.metrics.score_blocks.own_pages", counted)
    small, large = ScoreBlocks(10), ScoreBlocks(2**40)
    small.append(np.zeros(25, np.float32))
    large.append(np.zeros(25, np.float32))
    assert made == [10, 10, 10, 2**23]
