"""Whether all ranks hold the same mixtures, for debugging runs of many processes."""

from __future__ import annotations

import torch
from torch import Tensor

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.collectives import gather_stack

# What each rank holds by itself: the features it brought. All the rest is one state, kept by every rank.
OWN = ("memory.ring", "memory.slot_state", "warm_start.")
# Integers of a type's size, to read its bits.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LISTED = 5


def check_ranks_agree(bank: GaussianMixtureBank, when: str) -> None:
    """Compare hashes of means, scales, statistics and flags of every class over the ranks.

    Collective: every rank must call. It sends 8 bytes for each class and tensor.

    Args:
        when: for the error, as "after iteration 3".

    Raises:
        RuntimeError: on every rank, where one rank's bits are not rank 0's; names rank, tensor and classes.
    """
    hashes, places = [], []
    for name, tensor in bank.named_buffers():
        if name.startswith(OWN):
            continue
        of_classes = tensor.dim() > 0 and len(tensor) % bank.num_classes == 0
        rows = tensor.reshape(bank.num_classes if of_classes else 1, -1)
        hashes.append(row_hashes(rows))
        places += [(name, index if of_classes else None) for index in range(len(rows))]
    of_ranks = gather_stack(torch.cat(hashes))
    differs = (of_ranks != of_ranks[0]).cpu()
    if not differs.any():
        return
    classes: dict[tuple[str, int], list[str]] = {}
    for rank, place in differs.nonzero().tolist():
        name, index = places[place]
        listed = classes.setdefault((name, rank), [])
        if index is not None:
            listed.append(str(index))
    found = [
        f"{name}{' of class ' if listed else ''}{', '.join(listed)} on rank {rank}"
        for (name, rank), listed in classes.items()
    ]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    raise RuntimeError(
        f"the mixtures are not the same on all ranks {when}. Different from rank 0: "
        f"{'; '.join(found[:LISTED])}{more}. Something changes them on one rank alone, or not every rank "
        "takes every step; the last checkpoint has those of rank 0"
    )


def row_hashes(rows: Tensor) -> Tensor:
    """rows: (N, K) of any type -> (N,) int64, of the bits.

    Rows that differ in one number always have different hashes; in several, but for one chance in about 2^60.
    """
    bits = rows.contiguous().view(BITS[rows.element_size()]).long()
    # Odd factors lose nothing modulo 2^64, and random ones let no differences cancel.
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, bits.shape[1:], generator=generator) * 2 + 1
    return (bits * factors.to(bits.device)).sum(dim=1)
