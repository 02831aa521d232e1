"""One export: write the file, check it against PyTorch, time both, and only then let it appear."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor

from gmm_anomaly import __version__
from gmm_anomaly.benchmark.timing import Timing
from gmm_anomaly.data.atomic import replacing

from .checking import Comparison, ExportMismatchError, Network, compare, require_equal, time_networks
from .exportable import ExportableSegmentor
from .graph import MAX_BATCH, MAX_SIDE, export_graph
from .images import check_batches
from .metadata import ExportMetadata
from .onnx_format import load_onnx, write_onnx
from .packages import require_onnx
from .torch_export_format import load_torch_export, write_torch_export
from .torchscript_format import load_torchscript, write_torchscript

if TYPE_CHECKING:
    from gmm_anomaly.predictor import AnomalyPredictor

ONNX, TORCHSCRIPT, TORCH_EXPORT = "onnx", "torchscript", "torch-export"
FORMATS = (ONNX, TORCHSCRIPT, TORCH_EXPORT)
INPUT_TYPES = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what its check found.

    Attributes:
        size: the only height and width that it takes; None: any.
        reason: why no other size works, where none was asked for; else "".
        comparisons: one for each batch of the check.
        seconds: for one image of ``timed_size``, by "PyTorch" and the format's engine.
    """

    file: Path
    format: str
    size: tuple[int, int] | None
    reason: str
    metadata: ExportMetadata
    comparisons: list[Comparison]
    timed_size: tuple[int, int]
    seconds: dict[str, Timing]

    @property
    def worst(self) -> Comparison:
        return max(self.comparisons, key=lambda comparison: comparison.relative)


def export(
    predictor: AnomalyPredictor,
    out: Path,
    *,
    format: str,
    images: Sequence[np.ndarray],
    size: tuple[int, int] | None = None,
    input_type: str = "uint8",
    repeats: int = 5,
) -> Exported:
    """Export a predictor's network and score.

    Args:
        predictor: with the score and, if known, the threshold to export.
        out: the file; it appears only if the check succeeds.
        format: one of :data:`FORMATS`.
        images: (H, W, 3) uint8 RGB, to check and time with; resized first if the config says so.
        size: height and width to fix. None: open, or the first image's where the network allows one only.
        input_type: "uint8" or "float32" (0 to 255 too).
        repeats: rounds of the timing.

    Raises:
        ValueError: what this format or any cannot hold. ImportError: packages for ONNX are missing.
        ExportMismatchError: results that differ from PyTorch's by more than the limit.
    """
    if format == ONNX:
        require_onnx()
    module = ExportableSegmentor(predictor.scorer.model, predictor.score, image_format=predictor.image_format)
    images = [_as_tested(image, predictor) for image in images]
    reason = ""
    if size is None:
        try:
            return _export(predictor, module, out, format, images, None, "", input_type, repeats)
        except (ValueError, ExportMismatchError) as error:
            size = (images[0].shape[0], images[0].shape[1])
            reason = str(error)
    return _export(predictor, module, out, format, images, size, reason, input_type, repeats)


def _export(
    predictor: AnomalyPredictor,
    module: ExportableSegmentor,
    out: Path,
    format: str,
    images: Sequence[np.ndarray],
    size: tuple[int, int] | None,
    reason: str,
    input_type: str,
    repeats: int,
) -> Exported:
    dtype = INPUT_TYPES[input_type]
    metadata = _metadata(predictor, module, size, input_type)
    with replacing(out) as temporary:
        if format == TORCHSCRIPT:
            write_torchscript(temporary, module, metadata, size=size, dtype=dtype)
            name, exported = "TorchScript", load_torchscript(temporary)
        elif format == ONNX:
            write_onnx(temporary, export_graph(module, size, module.min_side, dtype), metadata)
            name, exported = "onnxruntime", load_onnx(temporary, torch.get_num_threads())
        else:
            write_torch_export(temporary, export_graph(module, size, module.min_side, dtype), metadata)
            name, exported = "torch.export", load_torch_export(temporary)
        reference = normal_inference(predictor)
        batches = [batch.to(dtype) for batch in check_batches(images, size)]
        comparisons = compare(reference, exported, batches)
        require_equal(comparisons)
        seconds = time_networks({"PyTorch": reference, name: exported}, batches[0], repeats)
    timed = (int(batches[0].shape[2]), int(batches[0].shape[3]))
    return Exported(out, format, size, reason, metadata, comparisons, timed, seconds)


def normal_inference(predictor: AnomalyPredictor) -> Network:
    """The way of the evaluation, on whole images, as a function of a batch."""
    scorer = predictor.scorer
    # Large images are cut into windows there; the exported network never does.
    scorer.model.inference = dataclasses.replace(scorer.model.inference, max_whole_pixels=0)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        ordered = images if predictor.image_format == "RGB" else images.flip(1)
        outputs = scorer([{"image": image} for image in ordered])
        return (
            torch.stack([output["sem_seg"].argmax(dim=0) for output in outputs]).cpu(),
            torch.stack([output["anomaly_score"] for output in outputs]).float().cpu(),
        )

    return run


def _as_tested(image: np.ndarray, predictor: AnomalyPredictor) -> np.ndarray:
    """As the evaluation resizes it, which is not part of the network."""
    inputs = T.AugInput(image)
    predictor.resize(inputs)
    return inputs.image


def _metadata(
    predictor: AnomalyPredictor, module: ExportableSegmentor, size: tuple[int, int] | None, input_type: str
) -> ExportMetadata:
    return ExportMetadata(
        class_names=tuple(predictor.class_names),
        palette=tuple(predictor.class_colors),
        score=predictor.score,
        threshold=predictor.threshold,
        input_rule=input_rule(predictor, module, size, input_type),
        version=__version__,
        weights_sha256=predictor.weights_sha256,
    )


def input_rule(
    predictor: AnomalyPredictor, module: ExportableSegmentor, size: tuple[int, int] | None, input_type: str
) -> dict[str, Any]:
    """What an image must be, as plain values.

    ``height`` and ``width`` are null where any will do; ``resize_shorter_side`` is what the evaluation
    resizes the shorter side to before the network (with a longer side of at most ``resize_max_side``), null
    where it takes images as they are. Padding to multiples of ``padded_inside_to`` happens in the network.
    """
    resize = [step for step in predictor.resize.augs if isinstance(step, T.ResizeShortestEdge)]
    return {
        "layout": "(B, 3, H, W)",
        "channels": "RGB",
        "type": input_type,
        "values": [0, 255],
        "max_batch": MAX_BATCH,
        "min_side": module.min_side,
        "max_side": MAX_SIDE,
        "height": None if size is None else size[0],
        "width": None if size is None else size[1],
        "padded_inside_to": module.divisor,
        "resize_shorter_side": int(resize[0].short_edge_length[0]) if resize else None,
        "resize_max_side": int(resize[0].max_size) if resize else None,
    }
