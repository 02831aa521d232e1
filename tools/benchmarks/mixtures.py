"""Class densities against the broadcast formula and a bare matrix product; a step of assignment, memory and
EM against loops over classes and components."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gmm_anomaly.gmm import (
    GaussianMixtureBank,
    GaussianMixtures,
    class_log_density,
    component_log_prob,
    own_class_log_prob,
    sinkhorn_assign_all,
)
from tests.oracles.em import PlainEM, broadcast_log_prob
from tools.benchmarks.timing import memory, report, side_by_side

# Classes and components: Cityscapes' and ADE20K's mixtures in the paper.
MIXTURES = ((19, 5), (150, 5))
DIM = 64
COMPARED_PIXELS = 2048
BARE = "bare product"


def add_density_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pixels", type=int, default=131072, help="N (131072)")
    parser.add_argument(
        "--broadcast-memory", type=float, default=1.0, metavar="GB",
        help="for the broadcast formula (1); where it wants more, it gets fewer pixels and its figures are "
        "scaled up to all of them",
    )  # fmt: skip


def densities(classes: int, components: int, device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """The functions to compare, each from pixels (N, D) to class densities; mixtures as trained ones."""
    generator = torch.Generator().manual_seed(0)
    mixtures = GaussianMixtures(classes, components, DIM)
    mixtures.fitted.fill_(True)
    # As trained: standard deviations at the paper's floor of 0.1 and a little above.
    mixtures.scales.copy_(0.1 + 0.05 * torch.rand(classes, components, DIM, generator=generator))
    mixtures.to(device).eval()
    factor = torch.randn(2 * DIM, classes * components).to(device)

    def by(formula: Callable[..., Tensor], x: Tensor) -> Tensor:
        return class_log_density(formula(x, mixtures.unit_means.to(x.dtype), mixtures.scales.to(x.dtype)))

    return {
        "ours": mixtures.class_log_density,
        # With the (N, C, M) component densities in between, which training needs.
        "ours, by components": partial(by, component_log_prob),
        "broadcast": partial(by, broadcast_log_prob),
        BARE: lambda both: torch.mm(both, factor),
    }


def pixels_for(name: str, count: int, device: str) -> Tensor:
    """(N, D) on the unit sphere; for the bare product with their squares, (N, 2 D)."""
    x = F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)), dim=1).to(device)
    return torch.cat((x, x.square()), dim=1) if name == BARE else x


@torch.no_grad()
def density_memory(name: str, classes: int, components: int, pixels: int, device: str) -> int:
    """Bytes that one call takes beside its inputs."""
    function, x = densities(classes, components, device)[name], pixels_for(name, pixels, device)
    before = memory(device)
    function(x)
    return memory(device, peak=True) - before


@torch.no_grad()
def density(args: argparse.Namespace) -> dict[str, Any]:
    found, on_gpu = [], args.device != "cpu"
    for classes, components in MIXTURES:
        functions = densities(classes, components, args.device)
        fitting = max(1, int(1e9 * args.broadcast_memory) // (2 * 4 * classes * components * DIM))
        counts = dict.fromkeys(functions, args.pixels) | {"broadcast": min(args.pixels, fitting)}
        scaled = args.pixels / counts["broadcast"]
        x = {name: pixels_for(name, count, args.device) for name, count in counts.items()}
        first = x["ours"][:COMPARED_PIXELS]
        exact = functions["broadcast"](first.double())
        error = {
            name: float((functions[name](first).double() - exact).abs().max())
            for name in ("ours", "ours, by components", "broadcast")
        }
        calls = {name: partial(function, x[name]) for name, function in functions.items()}
        # On a GPU calls are queued, so that not their launches are timed.
        seconds = side_by_side(calls, args, 20 if on_gpu else 1)
        seconds["broadcast"] = [scaled * value for value in seconds["broadcast"]]
        part = report(
            f"class densities of {args.pixels} pixels, {classes} x {components} x {DIM}"
            + (f"; broadcast of {counts['broadcast']}, scaled up" if scaled > 1 else ""),
            seconds,
            {
                ("broadcast", "ours"): "at least 60" if on_gpu and classes < 100 else "at least 100",
                ("ours", BARE): "at most 1.5",
            },
        )
        # A process each: memory that another function freed would be taken again unnoticed.
        context = multiprocessing.get_context("spawn" if on_gpu else "forkserver")
        if not on_gpu:
            context.set_forkserver_preload(["torch.utils.benchmark"])
        with context.Pool(1, maxtasksperchild=1) as pool:
            size = {
                name: pool.apply(density_memory, (name, classes, components, count, args.device))
                for name, count in counts.items()
            }
        size["broadcast"] = int(scaled * size["broadcast"])
        saved = size["broadcast"] / max(size["ours"], 1)
        print("memory, MB:", *(f"{name} {size[name] / 1e6:.1f};" for name in size), end=" ")
        print(f"broadcast / ours {saved:.0f}, at least 50 wanted")
        print("largest error, nats:", ", ".join(f"{name} {error[name]:.1e}" for name in error))
        sizes = {"classes": classes, "components": components, "broadcast_pixels": counts["broadcast"]}
        found.append(sizes | part | {"memory": size, "memory_ratio": saved, "error": error})
    return {"mixtures": found}


def add_em_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, nargs=2, default=(384, 192), metavar=("H", "W"),
        help="of the features of a batch (384 192: two crops of 768 x 768 at stride 4)",
    )  # fmt: skip
    parser.add_argument("--memory-size", type=int, default=32000, help="K, features per component (32000)")


@torch.no_grad()
def em(args: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    classes, components = MIXTURES[0]
    rows = classes * components
    means = F.normalize(torch.randn(classes, components, DIM, generator=generator), dim=-1)
    noise = torch.randn(rows, DIM, args.memory_size, generator=generator)
    rings = F.normalize(means.view(rows, DIM, 1) + 0.06 * noise, dim=1)
    bank = GaussianMixtureBank.from_reference_state(
        means, torch.full_like(means, 0.12), rings, torch.zeros(rows, dtype=torch.int64)
    ).to(args.device)
    plain = PlainEM(bank)
    labels = block_label(args.size, classes, 0).flatten()
    own = means[labels.clamp(max=classes - 1), torch.randint(components, labels.shape)]
    features = F.normalize(own + 0.1 * torch.randn(own.shape, generator=generator), dim=1).to(args.device)
    labels = labels.to(args.device)
    log_prob = bank.log_prob(features)
    correct = log_prob.amax(2).argmax(1) == labels

    @torch.no_grad()
    def ours(em: bool = True) -> Tensor:
        own = own_class_log_prob(log_prob, torch.where(labels < classes, labels, 0))
        assignment, _ = sinkhorn_assign_all(own, labels, classes)
        bank.record(features, labels, assignment, correct)
        bank.update() if em else bank.commit()
        return assignment

    @torch.no_grad()
    def loops(em: bool = True) -> Tensor:
        assignment = plain.record(features, log_prob, labels, correct)
        if em:
            plain.update(labels[labels < classes].unique())
        return assignment

    differences = {
        "pixels assigned otherwise": float((ours() != loops()).float().mean()),
        "means": float((bank.means - plain.means).abs().max()),
        "scales": float((bank.scales - plain.scales).abs().max()),
    }
    calls = {"loops, no EM": partial(loops, em=False), "ours, no EM": partial(ours, em=False)}
    found = report(
        f"a training step of the mixtures, {len(labels)} pixels, {classes} x {components} x {DIM}, "
        f"{args.memory_size} features a component",
        side_by_side(calls | {"loops": loops, "ours": ours}, args),
        {("loops, no EM", "ours, no EM"): "", ("loops", "ours"): "at least 10"},
    )
    print("largest differences:", ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    if args.device != "cpu":
        # torch's error says where a step of ours waits for the GPU, if it does.
        torch.cuda.set_sync_debug_mode("error")
        ours()
        torch.cuda.set_sync_debug_mode("default")
        print("ours waits for the GPU nowhere (torch's sync debug mode)")
    return found | {"differences": differences}


def block_label(size: tuple[int, int], classes: int, seed: int, block: int = 32) -> Tensor:
    """(H, W) int64: square regions of random classes, every twentieth one ignored (255)."""
    generator = torch.Generator().manual_seed(seed)
    cells = [-(-length // block) for length in size]
    label = torch.randint(0, classes, cells, generator=generator)
    label[torch.rand(cells, generator=generator) < 0.05] = 255
    label = label.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return label[: size[0], : size[1]].contiguous()
