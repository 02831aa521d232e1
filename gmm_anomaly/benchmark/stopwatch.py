"""Where the time of a step goes: a clock around functions that call each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch


class Stopwatch:
    """Adds up the seconds that each part takes itself, without those of other parts that it calls.

    Args:
        now: seconds, as :func:`~gmm_anomaly.benchmark.device.clock` gives them.

    Attributes:
        seconds: by part, so far.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, float] = defaultdict(float)
        # Seconds that the parts inside each running one have taken.
        self._inside: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        start = self.now()
        try:
            yield
        finally:
            taken = self.now() - start
            self.seconds[name] += taken - self._inside.pop()
            if self._inside:
                self._inside[-1] += taken

    @contextmanager
    def around(self, functions: list[tuple[Any, str, str]]) -> Iterator[None]:
        """Time every call inside.

        Args:
            functions: owner (an object, class or module), attribute name and part of each.
        """
        with ExitStack() as stack:
            for owner, attribute, part in functions:
                stack.enter_context(patch.object(owner, attribute, self._timed(owner, attribute, part)))
            yield

    def _timed(self, owner: Any, attribute: str, part: str) -> Callable[..., Any]:
        function = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **keywords: Any) -> Any:
            with self.part(part):
                return function(*args, **keywords)

        return timed
