"""What the processes of an evaluation tell each other: which images they saw, and what they counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

from detectron2.utils import comm

from .records import EvaluatedRecords

logger = logging.getLogger(__name__)

Metric = TypeVar("Metric", bound=Any)


class Shards:
    """Collective steps of an evaluator; without ``distributed`` each process is its own world.

    Args:
        distributed: whether the images are spread over the ranks, so that their counts belong together.
    """

    def __init__(self, distributed: bool) -> None:
        self.distributed = distributed and comm.get_world_size() > 1

    @property
    def is_main(self) -> bool:
        return not self.distributed or comm.is_main_process()

    def share(self, value: Any) -> list[Any]:
        """``value`` of every rank, in order of rank, on every rank."""
        return comm.all_gather(value) if self.distributed else [value]

    def from_main(self, value: Any) -> Any:
        """``value`` of rank 0, on every rank."""
        return self.share(value if self.is_main else None)[0]

    def merged(self, metric: Metric) -> Metric | None:
        """What all ranks counted, on rank 0; None elsewhere."""
        if not self.distributed:
            return metric
        states = comm.gather(metric.state())
        if not self.is_main:
            return None
        for state in states[1:]:
            metric.merge(type(metric).from_state(state))
        return metric

    def check_coverage(self, seen: Iterable[int], records: EvaluatedRecords) -> None:
        """Compare the images that were evaluated with the data set; every rank must call.

        Raises:
            ValueError (on every rank): no image was evaluated, or one by several ranks, as samplers do that
                pad their shards; both would falsify the numbers.
        """
        counts = Counter(index for shard in self.share(sorted(seen)) for index in shard)
        repeated = sorted(index for index, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(
                f"{records.name}: {len(repeated)} images were evaluated by more than one process, the first "
                f"is {records.image_id(repeated[0])!r}; use a sampler that does not repeat images "
                "(detectron2.data.samplers.InferenceSampler)"
            )
        if not counts:
            raise ValueError(f"{records.name}: no image was evaluated; the loader gave none")
        missing = [index for index in range(len(records)) if index not in counts]
        if missing and self.is_main:
            logger.warning(
                "%s: only %d of %d images were evaluated; the first that is missing is %r",
                *(records.name, len(counts), len(records), records.image_id(missing[0])),
            )
