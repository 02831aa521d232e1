"""The endless stream of training batches, which can begin at any of them, and its random numbers.

Random numbers follow from where something stands in a run, not from what was drawn before it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import IterableDataset, Sampler, get_worker_info

from .pairing import Record


class TrainingStream(IterableDataset[list[dict[str, Any]]]):
    """Batches of training inputs, shared out over a loader's workers.

    Batch ``k`` depends on the seed and ``k`` alone. So neither the number of workers nor what was read before
    matters, and a run that begins at batch ``k`` continues one that stopped there. The ranks together have
    the images and augmentations of one process with the whole batch.

    Args:
        records: of all training sets.
        mapper: from a record to an input; draws from the global generators of numpy, Python and torch.
        make_sampler: from a seed to the endless stream of this rank's indices.
        batch_size: inputs in a batch.
        seed: not negative, the same on every rank.
    """

    def __init__(
        self,
        records: list[Record],
        mapper: Callable[[Mapping[str, Any]], dict[str, Any]],
        make_sampler: Callable[[int], Iterable[int]],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self._rank, self._ranks = comm.get_rank(), comm.get_world_size()
        self.begin(0, seed=seed)

    def begin(self, batch: int, *, seed: int) -> None:
        """Make ``batch`` the first one of every iterator that is made from now on."""
        self.first, self.seed = batch, seed
        self.sampler = self.make_sampler(seed)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        places = enumerate(self.sampler)
        batches = iter(lambda: list(itertools.islice(places, self.batch_size)), [])
        worker = get_worker_info()
        offset, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in itertools.islice(batches, self.first + offset, None, step):
            yield [self._input(*place) for place in batch]

    def _input(self, position: int, index: int) -> dict[str, Any]:
        # The second number is another one for the steps of a training.
        with seeded(self.seed, 0, position * self._ranks + self._rank):
            return self.mapper(self.records[index])


class ClassBalancedSampler(Sampler):
    """Infinite stream of image indices: a class is drawn uniformly, then one of the images that contain it.

    As Detectron2's ``TrainingSampler``, every rank takes its own share of one common stream.

    Args:
        pixel_counts: (N, C), pixels of each class in each image; classes that no image has are never drawn.
        seed: of the common stream, equal on all ranks; None: a random one that the ranks agree on.

    Raises:
        ValueError: no image has a labelled pixel.
    """

    # Draws are made in blocks, because one draw at a time costs more than the sampling.
    _block = 1024

    def __init__(self, pixel_counts: np.ndarray, seed: int | None = None) -> None:
        present = np.asarray(pixel_counts) > 0
        if present.ndim != 2 or not present.any():
            raise ValueError(
                "ClassBalancedSampler: expected pixel counts (images, classes) with at least one labelled "
                f"pixel, found none in an array of shape {present.shape}"
            )
        self._images = [torch.from_numpy(np.flatnonzero(column)) for column in present.T if column.any()]
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank, self._ranks = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._stream(), self._rank, None, self._ranks)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            classes = torch.randint(len(self._images), (self._block,), generator=generator).tolist()
            places = torch.rand(self._block, generator=generator, dtype=torch.float64).tolist()
            for index, place in zip(classes, places, strict=True):
                images = self._images[index]
                yield int(images[int(place * len(images))])


def seed_generators(*place: int) -> None:
    """Seed the global generators of Python, numpy and torch, those of GPUs too, by non-negative numbers."""
    torch.manual_seed(_seed_numpy_and_python(place))


@contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Inside, the global generators of the CPU are seeded by ``place``; afterwards they are as before."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(_seed_numpy_and_python(place))
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


def _seed_numpy_and_python(place: tuple[int, ...]) -> int:
    """Returns torch's seed."""
    # Seeds of neighbouring places must not be neighbours: the first draws would be alike.
    words = np.random.SeedSequence(place).generate_state(4)
    np.random.seed(words)
    random.seed(words.tobytes())
    return int(words[0]) << 32 | int(words[1])
