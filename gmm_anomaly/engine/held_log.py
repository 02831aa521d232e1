"""Log lines from before a log exists."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler


@contextmanager
def held_log(name: str) -> Iterator[None]:
    """Hold back what is logged under ``name`` inside, and pass it on at the end.

    A config is read before its ``OUTPUT_DIR`` is known; its lines belong into the log in there.
    """
    logger = logging.getLogger(name)
    holder = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logger.addHandler(holder)
    try:
        yield
    finally:
        logger.removeHandler(holder)
        for record in holder.buffer:
            logger.handle(record)
