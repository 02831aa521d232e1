"""Work on many files in threads: decoding leaves the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], title: str, unit: str, *, progress: bool = True
) -> Iterator[Result]:
    """Results of ``function``, in the order of ``items``, with a progress bar.

    After an error, or Ctrl-C, what has not begun is left undone.
    """
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        yield from tqdm(
            pool.map(function, items), total=len(items), desc=title, unit=unit, disable=not progress
        )
    finally:
        pool.shutdown(cancel_futures=True)
