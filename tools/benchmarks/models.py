"""The gmm classifier against its softmax twin: a training iteration, and where its time goes; an inference,
scored on logits and on features."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.engine import EMHook, build_config, inference_config
from gmm_anomaly.engine.train_loop import TrainLoop, amp_dtype
from gmm_anomaly.engine.trainer import build_optimizer
from gmm_anomaly.gmm import GaussianMixtures, TiedGaussians
from gmm_anomaly.modeling.classifiers import RunningMeanPrototypes
from gmm_anomaly.modeling.feature_distance import FeatureDistance
from gmm_anomaly.modeling.max_logit_moments import MaxLogitMoments
from tools.benchmarks.mixtures import block_label
from tools.benchmarks.timing import clock, report, side_by_side

CONFIG = Path(__file__).parents[2] / "configs" / "cityscapes" / "r101_deeplabv3plus_gmm.yaml"
# They change no cost and need not be there.
NO_WEIGHTS = ("MODEL.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", "")
# Iterations on a GPU in which classes start, and that are timed apart; the first 5 make the GPU ready.
STARTING = 45
OWN_SCORE = {"gmm": "gmm_density", "softmax": "msp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", default=str(CONFIG), metavar="FILE",
        help="of both twins; default: DeepLabV3+ on ResNet-50, 19 classes with 5 components",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"), help="of an image (512 1024)"
    )
    parser.add_argument("--batch", type=int, default=2, help="images at a time (2)")
    parser.add_argument("--half", action="store_true", help="in mixed precision (bfloat16 on the CPU)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both twins")


@torch.no_grad()
def make_ready(model: nn.Module) -> None:
    """Mark as fitted whatever refuses to run unfitted; its values stay what they are, or become 1."""
    for module in model.modules():
        if isinstance(module, (GaussianMixtures, RunningMeanPrototypes)):
            module.fitted.fill_(True)
        elif isinstance(module, TiedGaussians):
            module.seen.fill_(True)
        elif isinstance(module, FeatureDistance):
            module.log_std.fill_(1)
            module.hybrid_moments[1].fill_(1)
        elif isinstance(module, MaxLogitMoments):
            module.std.fill_(1)


def twin_config(args: argparse.Namespace, classifier: str) -> CfgNode:
    """The config of one twin, for whole images."""
    overrides = [
        *(("MODEL.RESNETS.DEPTH", 50) if args.config_file == str(CONFIG) else ()),
        "SOLVER.AMP.ENABLED", args.half, *args.overrides, "MODEL.DEVICE", args.device,
        "MODEL.CLASSIFIER.NAME", classifier, "TEST.SCORES", [OWN_SCORE[classifier]],
        "TEST.SLIDING_WINDOW.ENABLED", False, "TEST.AUG.ENABLED", False, *NO_WEIGHTS,
    ]  # fmt: skip
    return build_config(args.config_file, overrides)


def random_image(size: Sequence[int], seed: int) -> Tensor:
    """(3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)


class Iteration:
    """Calls are training iterations on the same batch: forward, backward, optimiser, and the hooks after it.

    Without a class that still waits for its k-means, as for nearly all of a run.

    Attributes:
        starting: seconds of an iteration on a GPU before that, the mean of 40.
    """

    def __init__(self, args: argparse.Namespace, cfg: CfgNode) -> None:
        torch.manual_seed(0)
        model, classes = build_model(cfg), cfg.MODEL.CLASSIFIER.NUM_CLASSES
        batch = [
            {"image": random_image(args.size, seed), "sem_seg": block_label(args.size, classes, seed)}
            for seed in range(args.batch)
        ]
        optimizer = build_optimizer(cfg, model)
        self.loop = TrainLoop(wrap_distributed(model), itertools.repeat(batch), optimizer, amp=amp_dtype(cfg))
        self.loop.max_iter = cfg.SOLVER.MAX_ITER
        self.loop.storage = EventStorage()
        if model.bank is not None:
            self.loop.register_hooks([EMHook.from_config(cfg, model.bank)])
        # On a GPU long enough for all classes to have started, and for graphs to be made.
        now, starts = clock(args.device), 5 if args.device == "cpu" else STARTING
        for _ in range(5):
            self()
        since = now()
        for _ in range(starts - 5):
            self()
        self.starting = (now() - since) / max(starts - 5, 1)

    def __call__(self) -> None:
        with self.loop.storage:
            self.loop.before_step()
            self.loop.run_step()
            self.loop.after_step()
        self.loop.iter += 1


def train(args: argparse.Namespace) -> dict[str, Any]:
    cfg = twin_config(args, "gmm")
    interval = cfg.MODEL.GMM.UPDATE_INTERVAL
    twins = {name: Iteration(args, twin_config(args, name)) for name in ("softmax", "gmm")}
    found = report(
        f"a training iteration, {Path(args.config_file).stem}, {args.batch} x {args.size[0]}x{args.size[1]}, "
        f"the mean of {interval} with one EM step",
        side_by_side(twins, args, interval),
        {("gmm", "softmax"): "at most 1.08" if args.device == "cpu" else "at most 1.05"},
        args.batch,
    )
    if args.device != "cpu":
        found["starting"] = twins["gmm"].starting / twins["softmax"].starting
        print(f"while classes start: gmm / softmax {found['starting']:.3f}, at most 1.08 wanted")
    shares = iteration_shares(twins["gmm"], interval * args.repeats, clock(args.device))
    whole = sum(shares.values())
    print("of the gmm's:", ", ".join(f"{part} {seconds / whole:.1%}" for part, seconds in shares.items()))
    return found | {"where": shares}


def iteration_shares(iteration: Iteration, times: int, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of an iteration by part, the mean of ``times``; a part has no time of another one inside it.

    "classifier" is embedding, densities and losses, "EM" assignment, recording, memory and update; "rest" is
    what no part claims: normalising the images, looking for numbers that are not finite. Compiled parts
    cannot be timed apart: there the network is timed without compiling.
    """
    model, optimizer = iteration.loop.model, iteration.loop.optimizer
    parts = {
        "backbone": [(model.backbone, "forward")],
        "decoder": [(model.decoder, "forward")],
        "classifier": [(model.classifier, "losses")],
        "backward": [(torch.Tensor, "backward")],
        "EM": [(model.classifier, "_record"), (model.bank, "commit"), (model.bank, "update")],
        "optimiser": [(optimizer, "zero_grad"), (optimizer, "step")],
        "rest": [],
    }
    seconds, running = dict.fromkeys(parts, 0.0), ["rest"]

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            switch(part)
            try:
                return function(*given, **named)
            finally:
                switch(None)

        return call

    def switch(part: str | None) -> None:
        """Book the time since the last switch; enter a part, or leave the one that is running."""
        nonlocal since
        since, before = now(), since
        seconds[running[-1]] += since - before
        running.append(part) if part else running.pop()

    with ExitStack() as stack:
        stack.enter_context(patch.object(model, "compiled", False))
        for part, functions in parts.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        since = now()
        for _ in range(times):
            iteration()
        switch("rest")
    return {part: value / times for part, value in seconds.items()}


class Inference:
    """Calls score the same images: class logits at full size, and the classifier's own anomaly score."""

    def __init__(self, args: argparse.Namespace, cfg: CfgNode) -> None:
        torch.manual_seed(0)
        self.model = build_model(inference_config(cfg)).eval()
        make_ready(self.model)
        self.batch = [{"image": random_image(args.size, seed)} for seed in range(args.batch)]
        dtype = amp_dtype(cfg)
        self.autocast = partial(torch.autocast, args.device, dtype=dtype, enabled=dtype is not None)

    @torch.no_grad()
    def __call__(self, score_on: str = "logits") -> None:
        self.model.inference = dataclasses.replace(self.model.inference, score_on=score_on)
        with self.autocast():
            self.model(self.batch)


def infer(args: argparse.Namespace) -> dict[str, Any]:
    twins = {name: Inference(args, twin_config(args, name)) for name in OWN_SCORE}
    most = "at most 1.02" if args.device == "cpu" else "at most 1.03"
    calls = {f"{name}, on {on}": partial(twins[name], on) for on in ("logits", "features") for name in twins}
    return report(
        f"an inference, {Path(args.config_file).stem}, {args.batch} x {args.size[0]}x{args.size[1]}",
        side_by_side(calls, args),
        {(f"gmm, on {on}", f"softmax, on {on}"): most for on in ("logits", "features")},
        args.batch,
    )
