"""Inference: one image with the gmm classifier against its softmax twin, side by side, scored on logits and
on features."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gmm_anomaly.engine import inference_config
from gmm_anomaly.freed_memory import keep_freed_memory

from .device import clock
from .readiness import make_ready
from .timing import environment, ratio, side_by_side, summary
from .twins import add_arguments as add_twin_arguments
from .twins import print_times, random_image, settings, twin_config
from .variants import add_variants_argument, compare_variants

WANTED = 1.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--half", action="store_true", help="in mixed precision (bfloat16 on the CPU)")
    add_variants_argument(parser)
    add_twin_arguments(parser)


class Inference:
    """Calls score the same images with one twin: class logits at full size, and its own anomaly score.

    Args:
        cfg: of the twin. half: in mixed precision.
    """

    def __init__(self, args: argparse.Namespace, cfg: CfgNode, *, half: bool) -> None:
        torch.manual_seed(0)
        model = build_model(inference_config(cfg)).eval()
        make_ready(model)
        self.model = model
        self.batch = [{"image": random_image(args.size, seed)} for seed in range(args.batch)]
        self.device, self.half = torch.device(cfg.MODEL.DEVICE).type, half

    def on(self, score_on: str) -> Callable[[], None]:
        """The call with ``TEST.SCORE_ON`` so."""

        @torch.no_grad()
        def call() -> None:
            model = self.model
            model.inference = dataclasses.replace(model.inference, score_on=score_on)
            with torch.autocast(self.device, enabled=self.half):
                self.model(self.batch)

        return call


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    cfg = twin_config(args, "gmm")
    twins = {name: Inference(args, twin_config(args, name), half=args.half) for name in ("softmax", "gmm")}
    calls = {
        f"{name}, on {score_on}": twin.on(score_on)
        for score_on in ("logits", "features")
        for name, twin in twins.items()
    }
    seconds = side_by_side(calls, args.repeats, clock(cfg.MODEL.DEVICE))
    times = {name: summary(values)._asdict() for name, values in seconds.items()}
    ratios = {
        f"gmm / softmax, on {score_on}": ratio(
            seconds[f"gmm, on {score_on}"], seconds[f"softmax, on {score_on}"]
        )._asdict()
        for score_on in ("logits", "features")
    }
    given = settings(args, cfg) | {"half": args.half}
    precision = ", mixed precision" if args.half else ""
    print(f"one inference, {given['config']}, {args.batch} x {args.size[0]}x{args.size[1]}{precision}")
    print_times(times, ratios, WANTED, args.batch)
    # Their memory is wanted for the variants.
    del twins, calls
    return {
        "settings": given,
        "environment": environment([torch]),
        "seconds": times,
        "images_per_second": {name: args.batch / values["median"] for name, values in times.items()},
        "ratios": ratios,
        **({"variants": compare_variants(args, partial(_variant, args))} if args.variants else {}),
    }


def _variant(args: argparse.Namespace, cfg: CfgNode) -> Callable[[], None]:
    call = Inference(args, cfg, half=cfg.SOLVER.AMP.ENABLED).on("logits")
    call()
    return call
