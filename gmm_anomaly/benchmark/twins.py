"""Two segmentors that differ in their classifier alone, and inputs for them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from gmm_anomaly.engine import build_config

from .readiness import NO_WEIGHTS

CONFIG = Path(__file__).parents[2] / "configs" / "cityscapes" / "r101_deeplabv3plus_gmm.yaml"
R50 = ("MODEL.RESNETS.DEPTH", 50)
# The scores that are the classifiers' own.
OWN_SCORE = {"gmm": "gmm_density", "softmax": "msp", "prototype": "prototype_distance"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", default=str(CONFIG), metavar="FILE",
        help="of both twins; default: DeepLabV3+ on ResNet-50, 19 classes with 5 components",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"), help="of an image (512 1024)"
    )
    parser.add_argument("--batch", type=int, default=2, help="images at a time (2)")
    parser.add_argument("--device", help='"cpu" or "cuda"; default: MODEL.DEVICE')
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both twins")


def twin_config(args: argparse.Namespace, classifier: str, pairs: Sequence[Any] = ()) -> CfgNode:
    """The config of one twin, for whole images and without pretrained weights, which change no time.

    Args:
        pairs: keys and values that come last.
    """
    default = R50 if args.config_file == str(CONFIG) else ()
    device = () if args.device is None else ("MODEL.DEVICE", args.device)
    overrides = [
        *default, *device, *args.overrides, *NO_WEIGHTS,
        "MODEL.CLASSIFIER.NAME", classifier, "TEST.SCORES", [OWN_SCORE[classifier]],
        "TEST.SLIDING_WINDOW.ENABLED", False, "TEST.AUG.ENABLED", False, *pairs,
    ]  # fmt: skip
    return build_config(args.config_file, overrides)


def random_image(size: Sequence[int], seed: int) -> Tensor:
    """(3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)


def block_label(size: Sequence[int], classes: int, seed: int, block: int = 32) -> Tensor:
    """(H, W) int64: square regions of random classes, every twentieth one ignored (255)."""
    generator = torch.Generator().manual_seed(seed)
    cells = [-(-length // block) for length in size]
    label = torch.randint(0, classes, cells, generator=generator)
    label[torch.rand(cells, generator=generator) < 0.05] = 255
    label = label.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return label[: size[0], : size[1]].contiguous()


def settings(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    return {
        "config": Path(args.config_file).stem,
        "overrides": list(map(str, args.overrides)),
        "size": list(args.size),
        "batch": args.batch,
        "repeats": args.repeats,
        "threads": args.threads,
        "device": cfg.MODEL.DEVICE,
        "clock": "time" if cfg.MODEL.DEVICE.startswith("cuda") else "processor time",
    }


def print_times(
    times: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]], limit: float, batch: int
) -> None:
    """A line per timed function, which takes ``batch`` images, and per ratio what is wanted of it."""
    for name, found in times.items():
        spread = f"({1e3 * found['shortest']:.1f} to {1e3 * found['longest']:.1f})"
        speed = batch / found["median"]
        print(f"  {name:24s} {1e3 * found['median']:10.1f} ms  {spread:22s} {speed:8.2f} images/s")
    for name, found in ratios.items():
        spread = f"({found['shortest']:.3f} to {found['longest']:.3f})"
        print(f"  {name:24s} {found['median']:10.3f}     {spread}, at most {limit} wanted")
