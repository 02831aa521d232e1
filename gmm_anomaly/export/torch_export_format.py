"""torch.export (.pt2): PyTorch's own graph, for torch.compile, AOTInductor and ExecuTorch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .metadata import ExportMetadata


def write_torch_export(path: Path, program: ExportedProgram, metadata: ExportMetadata) -> None:
    """Write the program, with the metadata as extra files."""
    # Through memory: torch wants the suffix .pt2, which a file that is not finished does not have.
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Of weights that share one storage, on another device than the CPU; these lie there.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, buffer, extra_files=metadata.entries())
    path.write_bytes(buffer.getvalue())


def load_torch_export(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The file as a function of an image."""
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def read_torch_export_metadata(path: Path) -> ExportMetadata:
    """Raises ValueError for a file of another program."""
    entries = dict.fromkeys(ExportMetadata.__dataclass_fields__, "")
    torch.export.load(io.BytesIO(path.read_bytes()), extra_files=entries)
    return ExportMetadata.parse(entries)
