"""Work in threads: order, and what an error or Ctrl-C leaves undone."""

from __future__ import annotations

import threading
import time

import pytest

from gmm_anomaly.data.threads import in_threads


def test_results_come_in_order():
    assert list(in_threads(lambda number: number * number, range(50), "squares", "number")) == [
        number * number for number in range(50)
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_undone_what_has_not_begun(error):
    begun, failed = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 3:
            failed.set()
            raise error("3")
        if number > 3:
            failed.wait()
            time.sleep(0.001)  # the main thread needs a moment to hear of it

    with pytest.raises(error):
        list(in_threads(work, range(2000), "work", "item", progress=False))
    assert len(begun) < 2000
