"""The endless stream of training batches, which can begin at any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any

from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info

from .pairing import Record
from .reading import image_size
from .seeding import seeded

# Of the numbers that seed an image's augmentation; the steps of a training have another.
IMAGES = 0
# A place in the stream of this rank, and the index of the record there.
Place = tuple[int, int]


class TrainingStream(IterableDataset[list[dict[str, Any]]]):
    """Batches of training inputs, shared out over a loader's workers.

    Batch ``k`` depends on the seed and ``k`` alone: its images on the sampler's seed, the augmentation of
    each on the seed and its place in the stream. So neither the number of workers nor what was read before
    matters, and a run that begins at batch ``k`` continues one that stopped there. Without grouping, the
    ranks together have the images and augmentations of one process with the whole batch.

    Args:
        records: of all training sets.
        mapper: from a record to an input; draws from the global generators of numpy, Python and torch.
        make_sampler: from a seed to the endless stream of this rank's indices.
        batch_size: inputs in a batch.
        seed: not negative, the same on every rank.
        group_by_orientation: batches of wide, or of high images only. Looks at the size of every image.
    """

    def __init__(
        self,
        records: list[Record],
        mapper: Callable[[Mapping[str, Any]], dict[str, Any]],
        make_sampler: Callable[[int], Iterable[int]],
        *,
        batch_size: int,
        seed: int,
        group_by_orientation: bool = False,
    ) -> None:
        super().__init__()
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.group_by_orientation = group_by_orientation
        self._rank, self._ranks = comm.get_rank(), comm.get_world_size()
        self.begin(0, seed=seed)

    def begin(self, batch: int, *, seed: int) -> None:
        """Make ``batch`` the first one of every iterator that is made from now on."""
        self.first, self.seed = batch, seed
        self.sampler = self.make_sampler(seed)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        places: Iterator[Place] = zip(count(), self.sampler)  # noqa: B905  both are endless
        batches = self._grouped(places) if self.group_by_orientation else self._in_order(places)
        worker = get_worker_info()
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in islice(batches, self.first + share[0], None, share[1]):
            yield [self._input(*place) for place in batch]

    def _input(self, position: int, index: int) -> dict[str, Any]:
        with seeded(self.seed, IMAGES, position * self._ranks + self._rank):
            return self.mapper(self.records[index])

    def _in_order(self, places: Iterator[Place]) -> Iterator[list[Place]]:
        while True:
            yield list(islice(places, self.batch_size))

    def _grouped(self, places: Iterator[Place]) -> Iterator[list[Place]]:
        is_wide = lru_cache(maxsize=None)(partial(_is_wide, self.records))
        waiting: dict[bool, list[Place]] = {True: [], False: []}
        for place in places:
            group = waiting[is_wide(place[1])]
            group.append(place)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()


def _is_wide(records: DatasetFromList, index: int) -> bool:
    record = records[index]
    if "render" in record:
        return bool(record["render"]["width"] > record["render"]["height"])
    height, width = image_size(record["file_name"])
    return width > height
