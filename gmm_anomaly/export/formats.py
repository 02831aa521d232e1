"""The formats: one graph by torch.export, with sizes left open where the network allows it, in a file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gmm_anomaly.gmm import TiedGaussians
from gmm_anomaly.modeling.feature_distance import FeatureDistance
from gmm_anomaly.modeling.outlier_head import OutlierHead
from gmm_anomaly.predict.predictor import quiet

ONNX, TORCH_EXPORT = "onnx", "torch-export"
# Resize with antialiasing came with 18; 17 is the least that is promised.
OPSET = 18
# What torch.onnx writes with is onnxscript.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Sizes of the example image that is traced: odd, and of no common factor with a stride.
EXAMPLE_SIZE = (77, 101)
MAX_BATCH, MAX_SIDE = 64, 16384

Network = Callable[[Tensor], tuple[Tensor, Tensor]]


def require_onnx() -> None:
    """Raise ImportError, with the extra to install, unless all packages for ONNX are there."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"exporting to ONNX needs {', '.join(missing)} (extra `export`): pip install {' '.join(missing)} "
            "(in a checkout pip install -c constraints.txt -e '.[export]'). --format torch-export works "
            "without"
        )


def export_graph(
    module: nn.Module, size: tuple[int, int] | None, min_side: int = 2, dtype: torch.dtype = torch.uint8
) -> ExportedProgram:
    """Trace ``module`` for any batch of up to 64 images.

    Args:
        module: images (B, 3, H, W) to (segmentation, score).
        size: height and width to fix; None: any.
        min_side: the least height and width where they are open.
        dtype: of the image.

    Raises:
        ValueError: a network that cannot be traced so: with an open size, one that computes with height and
            width in Python, so that they become constants.
    """
    dimensions = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if size is None:
        dimensions |= {2: Dim("height", min=min_side, max=MAX_SIDE)}
        dimensions |= {3: Dim("width", min=min_side, max=MAX_SIDE)}
    example = torch.zeros(2, 3, *(size or EXAMPLE_SIZE), dtype=dtype)
    try:
        # Whether it is fitted is known; torch logs where every guard that fails came from.
        with (
            patch.object(FeatureDistance, "is_fitted", True), patch.object(TiedGaussians, "is_fitted", True),
            patch.object(OutlierHead, "is_fitted", True), quiet("torch"), torch.no_grad(),
        ):  # fmt: skip
            return torch.export.export(module, (example,), dynamic_shapes=(dimensions,), strict=False)
    except Exception as error:  # torch.export raises many kinds, from several packages
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
        what = "with an open height and width" if size is None else f"at {size[0]}x{size[1]}"
        raise ValueError(
            f"torch.export cannot trace this network {what} ({type(error).__name__}: {lines[0][:200]})"
        ) from error


def write(path: Path, format: str, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write a program, weights inside.

    Args:
        format: "onnx", with the metadata in ``metadata_props``; "torch-export" (.pt2, for torch.compile,
            AOTInductor and ExecuTorch), with the metadata as extra files.

    Raises:
        ImportError: a package is missing. ValueError: the network has an operator without a form in ONNX.
    """
    if format == ONNX:
        require_onnx()
        import onnx

        try:
            # The exporter prints its steps, and torch warns of names that onnxruntime does not need.
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet("torch.onnx"):
                warnings.simplefilter("ignore")
                exported = torch.onnx.export(
                    program, (), dynamo=True, opset_version=OPSET, input_names=["image"],
                    output_names=["segmentation", "score"], verbose=False,
                )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = (str(error).strip().splitlines() or [error])[-1]
            raise ValueError(
                f"export: ONNX has no form for a part of this network ({reason}); --format torch-export has"
            ) from error
        model = exported.model_proto
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        return
    # Through memory: torch wants the suffix .pt2, which a file that is not finished does not have.
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Of weights that share one storage, on another device than the CPU; these lie there.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, buffer, extra_files=dict(metadata))
    path.write_bytes(buffer.getvalue())


def load(path: Path, format: str, threads: int = 1) -> Network:
    """A file as a function of an image, on the CPU (ONNX: in onnxruntime)."""
    if format == TORCH_EXPORT:
        return torch.export.load(io.BytesIO(path.read_bytes())).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        segmentation, score = session.run(["segmentation", "score"], {"image": image.numpy()})
        return torch.from_numpy(segmentation), torch.from_numpy(score)

    return run
