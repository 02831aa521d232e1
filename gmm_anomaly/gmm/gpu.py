"""What keeps a GPU busy: numbers fetched without a wait, and many small kernels launched as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# A graph is captured after so many calls with arguments of one kind: a few images are not worth one.
PLAIN_CALLS = 10


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start a copy to the host. The function that is returned gives it, and waits for that copy alone, not
    for what the GPU was told to do after it."""
    host = tensor.to("cpu", non_blocking=True)
    if not tensor.is_cuda:
        return lambda: host
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> Tensor:
        arrived.synchronize()
        return host

    return read


class Replayed:
    """A function of tensors that a GPU replays as a CUDA graph: a hundred small kernels for one launch.

    On the CPU, and in the first calls with arguments of other shapes, the function runs as it is. It must not
    wait for the GPU, nor need gradients.

    Args:
        function: takes tensors and constants, returns a tuple of tensors.
        state: gives the tensors that it reads or writes in place beside its arguments. Where one of them has
            moved, the graph is made anew.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], state: Callable[[], Iterable[Tensor]] = tuple
    ) -> None:
        self.function, self.state = function, state
        self._kind: list[Any] = []
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Graphs can be neither copied nor written."""
        return vars(Replayed(self.function, self.state))

    @torch.no_grad()
    def __call__(self, *given: Any) -> tuple[Tensor, ...]:
        tensors = [value for value in given if isinstance(value, Tensor)]
        if not tensors[0].is_cuda:
            return self.function(*given)
        kind = [(v.shape, v.dtype, v.device) if isinstance(v, Tensor) else v for v in given]
        kind += [tensor.data_ptr() for tensor in self.state()]
        if kind != self._kind:
            self._kind, self._calls, self._graph = kind, 0, None
        self._calls += 1
        if self._calls <= PLAIN_CALLS:
            return self.function(*given)
        if self._graph is None:
            copies = [v.clone() if isinstance(v, Tensor) else v for v in given]
            self._inputs = [value for value in copies if isinstance(value, Tensor)]
            self._graph = torch.cuda.CUDAGraph()
            # Other threads (a loader that pins memory) may go on meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = self.function(*copies)
        for own, tensor in zip(self._inputs, tensors, strict=True):
            own.copy_(tensor)
        self._graph.replay()
        return tuple(tensor.clone() for tensor in self._outputs)
