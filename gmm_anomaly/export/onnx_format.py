"""ONNX: a file for onnxruntime and other engines."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .metadata import ExportMetadata
from .packages import require_onnx

# Resize with antialiasing came with 18; 17 is the least that is promised.
OPSET = 18


def write_onnx(path: Path, program: ExportedProgram, metadata: ExportMetadata) -> None:
    """Write the program with its metadata in ``metadata_props``, and weights inside.

    Raises:
        ImportError: a package is missing. ValueError: the network has an operator without a form in ONNX.
    """
    require_onnx()
    import onnx

    try:
        # The exporter prints its steps, and torch warns of names that onnxruntime does not need.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["segmentation", "score"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"export: ONNX has no form for a part of this network ({lines[-1] if lines else error}); "
            "--format torch-export has"
        ) from error
    model = exported.model_proto
    onnx.helper.set_model_props(model, metadata.entries())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def load_onnx(path: Path, threads: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The file as a function of an image, in onnxruntime on the CPU."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        segmentation, score = session.run(["segmentation", "score"], {"image": image.numpy()})
        return torch.from_numpy(segmentation), torch.from_numpy(score)

    return run


def read_onnx_metadata(path: Path) -> ExportMetadata:
    """Raises ValueError for a file of another program, ImportError without onnx."""
    require_onnx()
    import onnx

    props = onnx.load(str(path), load_external_data=False).metadata_props
    return ExportMetadata.parse({entry.key: entry.value for entry in props})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
