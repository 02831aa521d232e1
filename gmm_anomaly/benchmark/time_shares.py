"""Where the time of a training iteration goes, and how long its data takes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from torch import nn

from gmm_anomaly.data.build import train_records
from gmm_anomaly.data.mapper import SegmentationMapper
from gmm_anomaly.data.stream import TrainingStream
from gmm_anomaly.engine.train_loop import TrainLoop
from gmm_anomaly.modeling import classifiers, decoders

from .stopwatch import Stopwatch
from .twins import twin_config

PARTS = ("backbone", "decoder", "classifier", "loss", "backward", "EM", "optimiser", "rest")
LOSSES = ("pixel_cross_entropy", "component_contrast")
# Frames that the data's time is measured on.
FRAMES = 8


def iteration_shares(
    iteration: Callable[[], object], loop: TrainLoop, times: int, now: Callable[[], float]
) -> dict[str, float]:
    """Seconds of an iteration by part, the mean of ``times``.

    "classifier" is the embedding and the densities, "EM" assignment, recording, memory and update; "backward"
    is that of all parts together. "rest" is what no part claims: normalising the images, resizing labels,
    looking for numbers that are not finite.

    Args:
        iteration: runs one iteration of ``loop``, whose model is not compiled.
    """
    watch = Stopwatch(now)
    with watch.around(_timed_functions(loop.model, loop.optimizer)):
        for _ in range(times):
            with watch.part("rest"):
                iteration()
    return {part: watch.seconds[part] / times for part in PARTS}


def _timed_functions(segmentor: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[Any, str, str]]:
    classifier = segmentor.classifier
    functions: list[tuple[Any, str, str]] = [
        (segmentor.backbone, "forward", "backbone"),
        (segmentor.decoder, "forward", "decoder"),
        (classifier, "losses", "classifier"),
        (torch.Tensor, "backward", "backward"),
        (optimizer, "zero_grad", "optimiser"),
        (optimizer, "step", "optimiser"),
    ]
    # Modules hold these functions under names of their own.
    for package in (classifiers, decoders):
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith(package.__name__ + "."):
                functions += [(module, name, "loss") for name in LOSSES if hasattr(module, name)]
    if getattr(classifier, "sampled_contrast", None) is not None:
        functions.append((classifier.sampled_contrast, "loss", "loss"))
    if segmentor.bank is not None:
        functions += [(classifier, "_record", "EM")]
        functions += [(segmentor.bank, name, "EM") for name in ("commit", "update")]
    return functions


def data_seconds(args: argparse.Namespace, repeats: int, now: Callable[[], float]) -> dict[str, float]:
    """Seconds that an image of ``DATASETS.TRAIN`` takes from its file to the batch, augmented and cropped to
    ``args.size``: "decoded" each time, and "cached" (``INPUT.CACHE_DECODED``).

    Raises:
        FileNotFoundError: the data sets are not on disk.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cached in (("decoded", False), ("cached", True)):
            pairs = [
                "INPUT.CACHE_DECODED", cached, "INPUT.CROP.SIZE", list(args.size),
                "DATASETS.SYNTHETIC.CACHE_DIR", folder, "DATASETS.SYNTHETIC.NUM_TRAIN", FRAMES,
            ]  # fmt: skip
            found[name] = _seconds_per_image(twin_config(args, "gmm", pairs), args.batch, repeats, now)
    return found


def _seconds_per_image(cfg: CfgNode, batch: int, repeats: int, now: Callable[[], float]) -> float:
    records = [record for of_set in train_records(cfg).values() for record in of_set][:FRAMES]
    mapper = SegmentationMapper(cfg, True)
    for record in records:
        mapper(record)
    sampler = partial(TrainingSampler, len(records), True)
    batches = iter(TrainingStream(records, mapper, sampler, batch_size=batch, seed=0))
    # As many images as there are frames at least, for crops differ.
    turns = ceil(FRAMES / batch) * repeats
    start = now()
    for _ in range(turns):
        next(batches)
    return (now() - start) / (turns * batch)


def print_shares(seconds: dict[str, float], data: dict[str, float] | str, batch: int) -> dict[str, Any]:
    """Print both as a table.

    Args:
        seconds: of :func:`iteration_shares`. data: of :func:`data_seconds`, or why there is none.

    Returns:
        Seconds and shares of the iteration by part; of the data, seconds per image, share of the iteration
        without workers, and the workers that keep up with it.
    """
    total = sum(seconds.values())
    print("where the time of an iteration with gmm goes, the mean over whole EM intervals")
    for part, taken in seconds.items():
        print(f"  {part:24s} {1e3 * taken:10.1f} ms  {taken / total:6.1%}")
    print(f"  {'together':24s} {1e3 * total:10.1f} ms")
    result: dict[str, Any] = {
        "seconds": seconds,
        "share": {part: taken / total for part, taken in seconds.items()},
        "data": None,
    }
    if isinstance(data, str):
        print(f"  data: not measured, {data}")
        return result
    result["data"] = {}
    for name, taken in data.items():
        share, workers = batch * taken / total, ceil(batch * taken / total)
        result["data"][name] = {"seconds_per_image": taken, "share": share, "workers": workers}
        print(
            f"  {f'data, {name}':24s} {1e3 * batch * taken:10.1f} ms  {share:6.1%}  beside the iteration: "
            f"{1e3 * taken:.1f} ms an image, keeps up with DATALOADER.NUM_WORKERS {workers}"
        )
    return result
