"""The state that the public GMMSeg code keeps, checked before it is taken over."""

from __future__ import annotations

from torch import Tensor


def reference_sizes(
    means: Tensor, diagonal: Tensor, queue: Tensor, queue_ptr: Tensor
) -> tuple[int, int, int, int]:
    """Sizes of a reference state.

    Args:
        means: (C, M, D). diagonal: (C, M, D).
        queue: (C * M, D, K). queue_ptr: (C * M,).

    Returns:
        C, M, D and K.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if means.dim() != 3 or means.shape != diagonal.shape:
        raise ValueError(
            "means and diagonal: expected the same shape (C, M, D), "
            f"found {tuple(means.shape)} and {tuple(diagonal.shape)}"
        )
    classes, components, dim = means.shape
    rings = classes * components
    if queue.dim() != 3 or queue.shape[:2] != (rings, dim):
        raise ValueError(
            f"queue: expected shape (C*M, D, K) = ({rings}, {dim}, K), found {tuple(queue.shape)}"
        )
    if queue_ptr.shape != (rings,):
        raise ValueError(f"queue_ptr: expected shape ({rings},), found {tuple(queue_ptr.shape)}")
    return classes, components, dim, queue.shape[2]
