"""Class densities of pixels: ours, the broadcast formula, and a bare matrix product of the same size.

The broadcast formula makes the difference of every pixel and every mean, as the public GMMSeg code does by
``torch.distributions``: (N, C*M, D) numbers, two of them at a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtures, class_log_density, component_log_prob

from .device import clock, memory_now, memory_peak
from .roofline import copy, density_bytes, roofline
from .timing import environment, ratio, side_by_side, summary

# Classes, components: Cityscapes' and ADE20K's mixtures in the paper.
MIXTURES = ((19, 5), (150, 5))
WANTED = {"time": 100, "memory": 50, "bare": 1.5}
TEMPORARIES = 2
COMPARED_PIXELS = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pixels", type=int, default=131072, help="N (131072)")
    parser.add_argument("--dim", type=int, default=64, help="D (64)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument("--device", default="cpu", help='"cpu" (default), or "cuda"')
    parser.add_argument(
        "--broadcast-memory", type=float, default=10.0, metavar="GB",
        help="for the broadcast formula (10); where it wants more, it gets fewer pixels and its figures are "
        "scaled up to all of them",
    )  # fmt: skip


@dataclass
class Densities:
    """The functions to compare. mixtures: C x M x D, fitted; x: (N, D)."""

    mixtures: GaussianMixtures
    x: Tensor

    @classmethod
    def random(cls, classes: int, components: int, pixels: int, dim: int, device: str) -> Densities:
        generator = torch.Generator().manual_seed(0)
        mixtures = GaussianMixtures(classes, components, dim)
        mixtures.fitted.fill_(True)
        # As trained: standard deviations at the paper's floor of 0.1 and a little above.
        mixtures.scales.copy_(0.1 + 0.05 * torch.rand(classes, components, dim, generator=generator))
        x = F.normalize(torch.randn(pixels, dim, generator=generator), dim=1)
        return cls(mixtures.to(device).eval(), x.to(device))

    def ours(self) -> Tensor:
        return self.mixtures.class_log_density(self.x)

    def by_components(self) -> Tensor:
        """With the (N, C, M) component densities in between, which training needs."""
        return class_log_density(component_log_prob(self.x, self.mixtures.unit_means, self.mixtures.scales))

    def broadcast(self) -> Tensor:
        means = self.mixtures.unit_means.flatten(0, 1).to(self.x.dtype)
        scales = self.mixtures.scales.flatten(0, 1).to(self.x.dtype)
        log_prob = Independent(Normal(means, scales, validate_args=False), 1, validate_args=False).log_prob(
            self.x[:, None]
        )
        return class_log_density(log_prob.view(len(self.x), *self.mixtures.means.shape[:2]))

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(N, 2D) and (2D, C*M): pixels with their squares, and numbers in place of the mixtures."""
        width = self.mixtures.means.shape[:2].numel()
        return torch.cat((self.x, self.x.square()), dim=1), torch.randn(2 * self.x.shape[1], width).to(self.x)

    def bare_product(self) -> Tensor:
        return torch.mm(*self.factors)


FUNCTIONS: dict[str, Callable[[Densities], Tensor]] = {
    "ours": Densities.ours,
    "ours, by components": Densities.by_components,
    "broadcast": Densities.broadcast,
    "bare product": Densities.bare_product,
}


@torch.no_grad()
def peak_memory(name: str, sizes: tuple[int, int, int, int, str]) -> int:
    """Bytes that one call takes beside its inputs: of tensors on a GPU, of this process otherwise."""
    device = sizes[-1]
    given = Densities.random(*sizes)
    _ = given.factors
    before = memory_now(device)
    FUNCTIONS[name](given)
    return memory_peak(device) - before


@torch.no_grad()
def error(name: str, given: Densities) -> float:
    """Largest difference from float64, in nats, on the first pixels."""
    part = given.x[:COMPARED_PIXELS]
    exact = Densities(given.mixtures, part.double()).broadcast()
    return float((FUNCTIONS[name](Densities(given.mixtures, part)).double() - exact).abs().max())


@torch.no_grad()
def compare(classes: int, components: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times, memory and errors of one size of mixture; ``scaled``: N over the broadcast formula's pixels."""
    bytes_per_pixel = TEMPORARIES * classes * components * args.dim * 4
    fitting = max(1, int(1e9 * args.broadcast_memory) // bytes_per_pixel)
    pixels = {name: min(args.pixels, fitting) if name == "broadcast" else args.pixels for name in FUNCTIONS}
    scaled = args.pixels / pixels["broadcast"]

    sizes = {name: (classes, components, pixels[name], args.dim, args.device) for name in FUNCTIONS}
    given = {name: Densities.random(*sizes[name]) for name in FUNCTIONS}
    _ = given["bare product"].factors
    calls = {name: lambda name=name: FUNCTIONS[name](given[name]) for name in FUNCTIONS}
    calls["copy"] = copy(args.device)
    seconds = side_by_side(calls, args.repeats, clock(args.device))
    seconds["broadcast"] = [scaled * value for value in seconds["broadcast"]]
    copying = median(seconds.pop("copy"))
    moved = density_bytes(args.pixels, args.dim, classes, components)
    ours, product = median(seconds["ours"]), median(seconds["bare product"])

    # A process each: memory that another function freed would be taken again unnoticed.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, sizes[name])) for name in FUNCTIONS}
    memory["broadcast"] = int(scaled * memory["broadcast"])
    return {
        "classes": classes,
        "components": components,
        "broadcast_pixels": pixels["broadcast"],
        "seconds": {name: summary(values)._asdict() for name, values in seconds.items()},
        "memory": memory,
        "error": {name: error(name, given[name]) for name in FUNCTIONS if name != "bare product"},
        "time_ratio": ratio(seconds["broadcast"], seconds["ours"])._asdict(),
        "memory_ratio": memory["broadcast"] / max(memory["ours"], 1),
        "roofline": roofline(moved, ours, copying=copying, product=product),
        "bare_ratio": ratio(seconds["ours"], seconds["bare product"])._asdict(),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    found = []
    for classes, components in MIXTURES:
        part = compare(classes, components, args)
        found.append(part)
        print(f"class densities of {args.pixels} pixels, {classes} x {components} x {args.dim}")
        if part["broadcast_pixels"] < args.pixels:
            print(f"  broadcast on {part['broadcast_pixels']} pixels, its figures scaled up")
        for name, times in part["seconds"].items():
            spread = f"({1e3 * times['shortest']:.1f} to {1e3 * times['longest']:.1f})"
            off = f"  error {part['error'][name]:.1e} nats" if name in part["error"] else ""
            memory = f"{part['memory'][name] / 1e6:8.1f} MB"
            print(f"  {name:20s} {1e3 * times['median']:10.1f} ms  {spread:24s} {memory}{off}")
        time, bare = part["time_ratio"]["median"], part["bare_ratio"]["median"]
        print(f"  broadcast / ours     {time:10.0f} in time, at least {WANTED['time']} wanted")
        saved = part["memory_ratio"]
        print(f"  broadcast / ours     {saved:10.0f} in memory, at least {WANTED['memory']} wanted")
        print(f"  ours / bare product  {bare:10.2f} in time, at most {WANTED['bare']} wanted")
        roof = part["roofline"]
        print(
            f"  ours moves {1e3 * roof['GB']:.0f} MB at {roof['GB_s']:.1f} GB/s, "
            f"{roof['of_bandwidth']:.0%} of a copy's {roof['copy_GB_s']:.1f} GB/s; "
            f"{roof['of_roofline']:.0%} of the roofline of copy and product"
        )
    return {
        "settings": {
            "pixels": args.pixels,
            "dim": args.dim,
            "threads": args.threads,
            "device": args.device,
            "repeats": args.repeats,
        },
        "environment": environment([torch]),
        "mixtures": found,
    }
