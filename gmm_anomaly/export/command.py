"""The command `gmm-anomaly export`: write a file, check it against PyTorch on real images, and only then let
it appear."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from torch import Tensor

from gmm_anomaly import __version__
from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.data.reading import read_image
from gmm_anomaly.data.registration import get_records
from gmm_anomaly.data.streets.datasets import StreetSplit
from gmm_anomaly.evaluation.files import save_json
from gmm_anomaly.predict.inputs import is_video, list_sources
from gmm_anomaly.predict.predictor import AnomalyPredictor

from .formats import MAX_BATCH, MAX_SIDE, ONNX, Network, export_graph, load, require_onnx, write
from .network import ExportableSegmentor

# Largest error of a score relative to the spread of all scores, and largest share of pixels of another class.
MAX_ERROR = 1e-3
# Of the timing.
ROUNDS = 5
# Of streets that no data set of the project holds.
SYNTHETIC_SEED = 4242


def run(args: argparse.Namespace) -> None:
    """Export what the arguments say (see ``gmm_anomaly.verbs``), and print what was found."""
    if args.out.is_dir():
        raise ValueError(f"--out: expected a file to write, {args.out} is a folder")
    if args.format == ONNX:
        # Before a model is built.
        require_onnx()
    images = find_images(args.images, args.num_images)
    predictor = AnomalyPredictor.from_config(
        args.config_file, args.weights, score=args.score, threshold=args.threshold_file, device="cpu",
        opts=args.opts,
    )  # fmt: skip
    for used in filter(None, (predictor.weights, args.config_file, args.threshold_file)):
        if args.out.exists() and Path(used).exists() and args.out.samefile(used):
            raise ValueError(f"--out: {args.out} is what is exported, and would be lost; name another")
    try:
        found = export(
            predictor, args.out, format=args.format, images=images, size=args.size, input_type=args.input_type
        )
    except RuntimeError as error:  # a model that is not fitted
        raise ValueError(str(error)) from error
    save_json(args.out.with_name(f"{args.out.name}.json"), found)
    print(json.dumps(found, indent=2) if args.json else report(found))


def report(found: dict[str, Any]) -> str:
    """What was found, for a person."""
    size, rule = found["fixed_size"], found["metadata"]["input_rule"]
    shorter, longest = rule["resize_shorter_side"], rule["resize_max_side"]
    sizes = "any height and width" if size is None else f"{size[0]}x{size[1]} only"
    height, width = found["timed_size"]
    times = ", ".join(f"{name} {time:.1f} ms" for name, time in found["milliseconds"].items())
    lines = [
        f"{found['file']}: {found['bytes'] / 1e6:.1f} MB, {sizes}, any batch",
        f"weights: {found['weights']}",
        f"largest relative error {found['max_relative_error']:.3g} (limit {found['limit']:g})",
        f"one image of {height}x{width} on {found['threads']} thread(s): {times}",
    ]
    if found["fixed_because"]:
        lines.append(f"size fixed: {found['fixed_because']}")
    if shorter:
        lines.append(
            f"resize images to a shorter side of {shorter} first, and a longer one of {longest} at most, as "
            "the config does (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST): that is not part of the file"
        )
    return "\n".join(lines)


def export(
    predictor: AnomalyPredictor,
    out: Path,
    *,
    format: str,
    images: Sequence[np.ndarray],
    size: tuple[int, int] | None = None,
    input_type: str = "uint8",
) -> dict[str, Any]:
    """Export a predictor's network and score.

    Args:
        predictor: with the score and, if known, the threshold to export.
        out: the file; it appears only if the check succeeds.
        format: "onnx" or "torch-export".
        images: (H, W, 3) uint8 RGB, to check and time with; resized first if the config says so.
        size: height and width to fix. None: open, or the first image's where the network allows one only.
        input_type: "uint8" or "float32" (0 to 255 too).

    Returns:
        What is known about the file, as plain values: its metadata, the sizes it takes and why, and for each
        batch of the check what :func:`compare` found.

    Raises:
        ValueError: what this format or any cannot hold; results that differ from PyTorch's by more than the
            limit. ImportError: packages for ONNX are missing.
    """
    module = ExportableSegmentor(predictor.model, predictor.score, image_format=predictor.image_format)
    # As the evaluation resizes them, which is not part of the network.
    images = [predictor.resize(T.AugInput(image)).apply_image(image) for image in images]
    reference = normal_inference(predictor)
    dtype = getattr(torch, input_type)
    resize = [step for step in predictor.resize.augs if isinstance(step, T.ResizeShortestEdge)]

    def attempt(size: tuple[int, int] | None, reason: str) -> dict[str, Any]:
        metadata = {
            "class_names": predictor.class_names,
            "palette": predictor.class_colors,
            "score": predictor.score,
            "threshold": predictor.threshold,
            "input_rule": {
                "layout": "(B, 3, H, W)",
                "channels": "RGB",
                "type": input_type,
                "values": [0, 255],
                "max_batch": MAX_BATCH,
                "min_side": module.min_side,
                "max_side": MAX_SIDE,
                # None: any.
                "height": None if size is None else size[0],
                "width": None if size is None else size[1],
                "padded_inside_to": module.divisor,
                # What the evaluation does before the network; None: it takes images as they are.
                "resize_shorter_side": int(resize[0].short_edge_length[0]) if resize else None,
                "resize_max_side": int(resize[0].max_size) if resize else None,
            },
            "version": __version__,
            "weights_sha256": predictor.weights_sha256,
        }
        batches = [batch.to(dtype) for batch in check_batches(images, size)]
        with replacing(out) as temporary:
            program = export_graph(module, size, module.min_side, dtype)
            write(temporary, format, program, {name: json.dumps(value) for name, value in metadata.items()})
            exported = load(temporary, format, torch.get_num_threads())
            checks = compare(reference, exported, batches, MAX_ERROR)
            milliseconds = _timed({"PyTorch": reference, format: exported}, batches[0])
        return {
            "file": str(out),
            "weights": predictor.weights,
            "format": format,
            "bytes": out.stat().st_size,
            "metadata": metadata,
            "fixed_size": size,
            "fixed_because": reason,
            "limit": MAX_ERROR,
            "max_relative_error": max(check["relative"] for check in checks),
            "checks": checks,
            "timed_size": list(batches[0].shape[2:]),
            "threads": torch.get_num_threads(),
            "milliseconds": milliseconds,
        }

    if size is not None:
        return attempt(size, "")
    try:
        return attempt(None, "")
    except ValueError as error:
        return attempt(images[0].shape[:2], str(error))


def normal_inference(predictor: AnomalyPredictor) -> Network:
    """The way of the evaluation, on whole images, as a function of a batch."""
    model = predictor.model
    # Large images are cut into windows there; the exported network never does.
    model.inference = dataclasses.replace(model.inference, max_whole_pixels=0)

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        ordered = images if predictor.image_format == "RGB" else images.flip(1)
        outputs = model([{"image": image} for image in ordered])
        return (
            torch.stack([output["sem_seg"].argmax(dim=0) for output in outputs]).cpu(),
            torch.stack([output["anomaly_scores"][predictor.score] for output in outputs]).float().cpu(),
        )

    return run


def compare(
    reference: Network, exported: Network, batches: Sequence[Tensor], limit: float
) -> list[dict[str, Any]]:
    """Both networks on each batch (B, 3, H, W).

    Returns:
        For each batch its shape (``batch``); the largest difference of a score (``absolute``) and that
        divided by the spread, largest minus smallest, of PyTorch's scores over all batches (``relative``:
        scores have no natural zero, so their size is no measure); and the share of the pixels whose class
        differs (``classes``).

    Raises:
        ValueError: an error of scores or of classes above ``limit``, or the exported network fails.
    """
    expected = [reference(batch) for batch in batches]
    low = min(float(score.amin()) for _, score in expected)
    high = max(float(score.amax()) for _, score in expected)
    spread = high - low if high > low else max(abs(high), torch.finfo(torch.float32).tiny)
    found = []
    for batch, (segmentation, score) in zip(batches, expected, strict=True):
        where = f"on a batch {tuple(batch.shape)}"
        try:
            with torch.no_grad():
                got = exported(batch)
        except Exception as error:  # of a foreign engine
            raise ValueError(f"the exported network fails {where}: {error}") from error
        difference = (got[1].double() - score.double()).abs()
        # NaN is no small error.
        absolute = float(difference.amax()) if bool(difference.isfinite().all()) else float("inf")
        classes = float((got[0] != segmentation).double().mean())
        for what, error in (("scores", absolute / spread), ("classes", classes)):
            if not error <= limit:
                raise ValueError(
                    f"the exported network's {what} differ from PyTorch's by {error:.3g} {where}, the limit "
                    f"is {limit:g}; no file was written"
                )
        errors = {"absolute": absolute, "relative": absolute / spread, "classes": classes}
        found.append({"batch": list(batch.shape), **errors})
    return found


def _timed(networks: dict[str, Network], image: Tensor) -> dict[str, float]:
    """Median milliseconds for one image (1, 3, H, W), measured in turns after one that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for _ in range(ROUNDS + 1):
            for name, network in networks.items():
                start = time.perf_counter()
                network(image)
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values[1:]) for name, values in taken.items()}


def find_images(given: str | None, count: int) -> list[np.ndarray]:
    """Up to ``count`` images to check with, (H, W, 3) uint8 RGB, spread over what was given.

    Args:
        given: a folder, a file, a pattern, or the name of a registered data set; None: synthetic streets
            with anomalies, 256 x 512.

    Raises:
        FileNotFoundError: neither a file, a folder nor a data set. ValueError: no images in it.
    """
    if given is None:
        split = StreetSplit("export check", count, SYNTHETIC_SEED, anomalies=True)
        return [split[index][0] for index in range(count)]
    if given in DatasetCatalog:
        records = get_records(given)
    else:
        files = list_sources([given])
        records = [{"file_name": str(path)} for path in files if not is_video(path)]
    if not records:
        raise ValueError(f"--images: expected images in {given}, found none")
    count = min(count, len(records))
    return [read_image(records[index * len(records) // count], "RGB") for index in range(count)]


def check_batches(images: Sequence[np.ndarray], size: tuple[int, int] | None) -> list[Tensor]:
    """Batches (B, 3, H, W) uint8: every image alone; and two of them together, at another size if that is
    open, else resized to the fixed ``size``."""
    if size is not None:
        images = [cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR) for image in images]
    batches = [torch.from_numpy(image.transpose(2, 0, 1).copy())[None] for image in images]
    first, last = batches[0], batches[-1]
    if size is not None:
        return [*batches, torch.cat((first, last))]
    # Odd: no stride divides it.
    height, width = (
        max(min(a, b) * 2 // 3, 1) | 1 for a, b in zip(first.shape[2:], last.shape[2:], strict=True)
    )
    return [*batches, torch.cat([batch[..., -height:, :width] for batch in (first, last)])]
