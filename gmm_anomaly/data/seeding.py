"""Random numbers that follow from where something stands in a run, not from what was drawn before it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*place: int) -> None:
    """Seed the global generators of Python, numpy and torch, those of GPUs too, by non-negative numbers."""
    words = _seed_numpy_and_python(place)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


@contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Inside, the global generators of the CPU are seeded by ``place``; afterwards they are as before."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        words = _seed_numpy_and_python(place)
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


def _seed_numpy_and_python(place: tuple[int, ...]) -> np.ndarray:
    # Seeds of neighbouring places must not be neighbours: the first draws would be alike.
    words = np.random.SeedSequence(place).generate_state(4)
    np.random.seed(words)
    random.seed(words.tobytes())
    return words
