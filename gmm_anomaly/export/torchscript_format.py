"""TorchScript: a traced network, for libtorch. PyTorch keeps it working but develops torch.export instead."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .graph import EXAMPLE_SIZE
from .metadata import ExportMetadata


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    # Deprecation, and one for every size that tracing sees in Python: what it makes of them is checked.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_torchscript(
    path: Path,
    module: nn.Module,
    metadata: ExportMetadata,
    *,
    size: tuple[int, int] | None,
    dtype: torch.dtype = torch.uint8,
) -> None:
    """Trace ``module`` at ``size`` (None: at an example's, sizes staying open where they are traced)."""
    example = torch.zeros(2, 3, *(size or EXAMPLE_SIZE), dtype=dtype)
    with torch.no_grad(), _without_warnings():
        traced = torch.jit.freeze(torch.jit.trace(module, (example,), check_trace=False))
        torch.jit.save(traced, str(path), _extra_files=metadata.entries())


def load_torchscript(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The file as a function of an image."""
    with _without_warnings():
        return torch.jit.load(str(path), map_location="cpu")


def read_torchscript_metadata(path: Path) -> ExportMetadata:
    """Raises ValueError for a file of another program."""
    entries = dict.fromkeys(ExportMetadata.__dataclass_fields__, "")
    with _without_warnings():
        torch.jit.load(str(path), map_location="cpu", _extra_files=entries)
    return ExportMetadata.parse(entries)
