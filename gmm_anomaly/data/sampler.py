"""Sampling training images so that rare classes are seen as often as common ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import Sampler


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
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            classes = torch.randint(len(self._images), (self._block,), generator=generator).tolist()
            places = torch.rand(self._block, generator=generator, dtype=torch.float64).tolist()
            for index, place in zip(classes, places, strict=True):
                images = self._images[index]
                yield int(images[int(place * len(images))])
