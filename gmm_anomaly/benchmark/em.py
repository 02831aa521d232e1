"""What the mixtures add to a training step: assignment of all classes, memory, EM; against loops.

Both sides get the same pixels and log-densities and must agree, or nothing is printed.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, own_class_log_prob, sinkhorn_assign_all

from .device import clock
from .plain_em import PlainEM
from .timing import environment, ratio, side_by_side, summary
from .twins import block_label

WANTED = 10
# Of single-precision sums over a ring, against running sums in double precision.
TOLERANCE = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, nargs=2, default=(384, 192), metavar=("H", "W"),
        help="of the features of a batch (384 192: two crops of 768 x 768 at stride 4)",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, default=19, help="C (19)")
    parser.add_argument("--components", type=int, default=5, help="M per class (5)")
    parser.add_argument("--dim", type=int, default=64, help="D (64)")
    parser.add_argument("--memory-size", type=int, default=32000, help="K, features per component (32000)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument("--device", default="cpu", help='"cpu" (default), or "cuda"')


class Step:
    """A batch and the two sides that take it in."""

    def __init__(self, args: argparse.Namespace) -> None:
        generator = torch.Generator().manual_seed(0)
        classes, components, dim = args.classes, args.components, args.dim
        rows = classes * components
        means = F.normalize(torch.randn(classes, components, dim, generator=generator), dim=-1)
        noise = torch.randn(rows, dim, args.memory_size, generator=generator)
        rings = F.normalize(means.view(rows, dim, 1) + 0.06 * noise, dim=1)
        self.bank = GaussianMixtureBank.from_reference_state(
            means, torch.full_like(means, 0.12), rings, torch.zeros(rows, dtype=torch.int64)
        ).to(args.device)
        self.plain = PlainEM(self.bank)

        self.labels = block_label(args.size, classes, 0).flatten().to(args.device)
        pixels = len(self.labels)
        own = means[self.labels.cpu().clamp(max=classes - 1), torch.randint(components, (pixels,))]
        self.features = F.normalize(own + 0.1 * torch.randn(pixels, dim, generator=generator), dim=1)
        self.features = self.features.to(args.device)
        self.log_prob = self.bank.log_prob(self.features)
        self.correct = self.log_prob.amax(2).argmax(1) == self.labels

    @torch.no_grad()
    def record(self) -> Tensor:
        """Ours: assignment and memory."""
        bank = self.bank
        known = self.labels < bank.num_classes
        index = torch.where(known, self.labels, 0)
        own = own_class_log_prob(self.log_prob, index)
        assignment, _ = sinkhorn_assign_all(own, self.labels, bank.num_classes)
        bank.record(self.features, self.labels, assignment, self.correct)
        bank.commit()
        return assignment

    def record_and_update(self) -> Tensor:
        """Ours: and EM."""
        assignment = self.record()
        self.bank.update()
        return assignment

    @torch.no_grad()
    def plain_record(self) -> Tensor:
        return self.plain.record(self.features, self.log_prob, self.labels, self.correct)

    def plain_record_and_update(self) -> Tensor:
        assignment = self.plain_record()
        self.plain.update(self.labels[self.labels < self.bank.num_classes].unique())
        return assignment

    def check_agreement(self) -> dict[str, float]:
        """One step of both.

        Raises:
            RuntimeError: they end in different places.
        """
        ours, loops = self.record_and_update(), self.plain_record_and_update()
        found = {
            "pixels assigned otherwise": float((ours != loops).float().mean()),
            "means": float((self.bank.means - self.plain.means).abs().max()),
            "scales": float((self.bank.scales - self.plain.scales).abs().max()),
        }
        if max(found.values()) > TOLERANCE:
            raise RuntimeError(f"the two versions of EM disagree, one of them is wrong: {found}")
        return found

    def check_never_waits(self) -> None:
        """On a GPU: a step of ours without one host-device synchronisation, or torch's error says where."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.record_and_update()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    step = Step(args)
    differences = step.check_agreement()
    on_gpu = args.device.startswith("cuda")
    calls = {
        "loops, no EM": step.plain_record,
        "ours, no EM": step.record,
        "loops": step.plain_record_and_update,
        "ours": step.record_and_update,
    }
    seconds = side_by_side(calls, args.repeats, clock(args.device))
    ratios = {
        "assignment and memory": ratio(seconds["loops, no EM"], seconds["ours, no EM"])._asdict(),
        "with EM": ratio(seconds["loops"], seconds["ours"])._asdict(),
    }
    sizes = f"{args.classes} x {args.components} x {args.dim}, {args.memory_size} features a component"
    print(f"a training step of the mixtures, {len(step.labels)} pixels, {sizes}")
    for name, values in seconds.items():
        times = summary(values)
        spread = f"({1e3 * times.shortest:.1f} to {1e3 * times.longest:.1f})"
        print(f"  {name:24s} {1e3 * times.median:10.1f} ms  {spread}")
    for name, found in ratios.items():
        wanted = f", at least {WANTED} wanted" if name == "with EM" else ""
        print(f"  loops / ours, {name:22s} {found['median']:6.1f}{wanted}")
    print(f"  largest differences: {', '.join(f'{name} {value:.1e}' for name, value in differences.items())}")
    if on_gpu:
        step.check_never_waits()
        print("  ours waits for the GPU nowhere (torch's sync debug mode)")
    names = ("size", "classes", "components", "dim", "memory_size", "threads", "device", "repeats")
    return {
        "settings": {name: getattr(args, name) for name in names},
        "environment": environment([torch]),
        "seconds": {name: summary(values)._asdict() for name, values in seconds.items()},
        "ratios": ratios,
        "differences": differences,
        **({"synchronisations": 0} if on_gpu else {}),
    }
