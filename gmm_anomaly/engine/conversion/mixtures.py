"""The state of the released GMMSeg head's mixtures -> the state dict of a :class:`GaussianMixtureBank`."""

from __future__ import annotations

import torch
from torch import Tensor

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.bank import reference_sizes

# Its names: (C, M, D) means and standard deviations, (C * M, D, K) stored features, (C * M,) next slots.
TENSORS = ("means", "diagonal", "queue", "queue_ptr")


def mixture_tensors(
    means: Tensor, diagonal: Tensor, queue: Tensor, queue_ptr: Tensor, bank: GaussianMixtureBank
) -> dict[str, Tensor]:
    """The tensors of ``bank.state_dict()`` in the released head's state, its memory full.

    One class at a time: the queue of the paper's size on ADE20K is 10 GB.

    Args:
        means, diagonal, queue, queue_ptr: see :meth:`GaussianMixtureBank.from_reference_state`.
        bank: what it is for; says whether the stored features are kept, and of what type they are.

    Raises:
        ValueError: shapes that do not fit each other, or stored features to be kept that are more or fewer
            than the memory has slots.
    """
    classes, components, _, slots = reference_sizes(means, diagonal, queue, queue_ptr)
    memory = bank.memory
    if memory.save_ring and slots != memory.slots:
        raise ValueError(
            f"MODEL.GMM.MEMORY_SIZE: the checkpoint's memory has {slots} slots, found {memory.slots}; set it "
            "to that, or MODEL.GMM.SAVE_MEMORY to False (its statistics are enough)"
        )
    states = []
    for index in range(classes):
        own, rings = slice(index, index + 1), slice(index * components, (index + 1) * components)
        one = GaussianMixtureBank.from_reference_state(
            means[own].float(),
            diagonal[own].float(),
            queue[rings],
            queue_ptr[rings],
            samples_per_update=1,
            memory_dtype=memory.ring.dtype,
            save_memory=memory.save_ring,
        )
        states.append(one.state_dict())
    tensors = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    # A class that has started collects nothing for its warm start.
    waiting = {name: value for name, value in bank.state_dict().items() if name.startswith("warm_start.")}
    return tensors | {name: torch.zeros_like(value) for name, value in waiting.items()}
