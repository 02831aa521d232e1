"""Class densities against the broadcast formula and a bare matrix product; a step of assignment, memory and
EM against loops over classes and components. What is compared must agree, or nothing is printed."""

from __future__ import annotations

import argparse
import multiprocessing
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
from tools.benchmarks.timing import memory_now, memory_peak, report, side_by_side

# Classes and components: Cityscapes' and ADE20K's mixtures in the paper.
MIXTURES = ((19, 5), (150, 5))
DIM = 64
COMPARED_PIXELS = 2048
# Of single-precision sums over a ring, against running sums in double precision.
TOLERANCE = 1e-5


def add_density_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pixels", type=int, default=131072, help="N (131072)")
    parser.add_argument(
        "--broadcast-memory", type=float, default=1.0, metavar="GB",
        help="for the broadcast formula (1); where it wants more, it gets fewer pixels and its figures are "
        "scaled up to all of them",
    )  # fmt: skip


class Densities:
    """The functions to compare, each from pixels (N, D) to class densities; mixtures as trained ones."""

    names = ("ours", "ours, by components", "broadcast", "bare product")

    def __init__(self, classes: int, components: int, dim: int, pixels: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        mixtures = GaussianMixtures(classes, components, dim)
        mixtures.fitted.fill_(True)
        # As trained: standard deviations at the paper's floor of 0.1 and a little above.
        mixtures.scales.copy_(0.1 + 0.05 * torch.rand(classes, components, dim, generator=generator))
        self.mixtures = mixtures.to(device).eval()
        self.x = F.normalize(torch.randn(pixels, dim, generator=generator), dim=1).to(device)
        self.squares = torch.cat((self.x, self.x.square()), dim=1)
        self.factor = torch.randn(2 * dim, classes * components).to(device)

    @torch.no_grad()
    def call(self, name: str, x: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        means, scales = self.mixtures.unit_means.to(x.dtype), self.mixtures.scales.to(x.dtype)
        if name == "ours":
            return self.mixtures.class_log_density(x)
        if name == "ours, by components":
            # With the (N, C, M) component densities in between, which training needs.
            return class_log_density(component_log_prob(x, means, scales))
        if name == "broadcast":
            return class_log_density(broadcast_log_prob(x, means, scales))
        return torch.mm(self.squares, self.factor)


def density_memory(name: str, *sizes: Any) -> int:
    """Bytes that one call takes beside its inputs."""
    given, device = Densities(*sizes), sizes[-1]
    before = memory_now(device)
    given.call(name)
    return memory_peak(device) - before


def density(args: argparse.Namespace) -> dict[str, Any]:
    found = []
    for classes, components in MIXTURES:
        fitting = max(1, int(1e9 * args.broadcast_memory) // (2 * 4 * classes * components * DIM))
        pixels = {name: args.pixels for name in Densities.names} | {"broadcast": min(args.pixels, fitting)}
        sizes = {name: (classes, components, DIM, pixels[name], args.device) for name in pixels}
        given = {name: Densities(*sizes[name]) for name in pixels}
        first = given["ours"].x[:COMPARED_PIXELS]
        exact = given["ours"].call("broadcast", first.double())
        error = {
            name: float((given["ours"].call(name, first).double() - exact).abs().max())
            for name in Densities.names[:-1]
        }
        if max(error.values()) > 1e-3:
            raise RuntimeError(f"the densities disagree, one of them is wrong: {error} nats from float64")
        calls = {name: partial(one.call, name) for name, one in given.items()}
        seconds = side_by_side(calls, args.repeats, device=args.device, threads=args.threads)
        scaled = args.pixels / pixels["broadcast"]
        seconds["broadcast"] = [scaled * value for value in seconds["broadcast"]]
        part = report(
            f"class densities of {args.pixels} pixels, {classes} x {components} x {DIM}"
            + (f"; broadcast of {pixels['broadcast']}, scaled up" if scaled > 1 else ""),
            seconds,
            {
                "broadcast / ours": ("broadcast", "ours", "at least 100"),
                "ours / bare product": ("ours", "bare product", "at most 1.5"),
            },
        )
        # A process each: memory that another function freed would be taken again unnoticed.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.utils.benchmark"])
        with context.Pool(1, maxtasksperchild=1) as pool:
            memory = {name: pool.apply(density_memory, (name, *sizes[name])) for name in pixels}
        memory["broadcast"] = int(scaled * memory["broadcast"])
        saved = memory["broadcast"] / max(memory["ours"], 1)
        print("  memory, MB:", *(f"{name} {memory[name] / 1e6:.1f};" for name in memory), end=" ")
        print(f"broadcast / ours {saved:.0f}, at least 50 wanted")
        print("  largest error, nats:", ", ".join(f"{name} {error[name]:.1e}" for name in error))
        sizes_found = {"classes": classes, "components": components, "broadcast_pixels": pixels["broadcast"]}
        found.append(sizes_found | part | {"memory": memory, "memory_ratio": saved, "error": error})
    return {"mixtures": found}


def add_em_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, nargs=2, default=(384, 192), metavar=("H", "W"),
        help="of the features of a batch (384 192: two crops of 768 x 768 at stride 4)",
    )  # fmt: skip
    parser.add_argument("--memory-size", type=int, default=32000, help="K, features per component (32000)")


class Step:
    """A batch and the two sides that take it in."""

    def __init__(self, args: argparse.Namespace) -> None:
        generator = torch.Generator().manual_seed(0)
        (classes, components), dim = MIXTURES[0], DIM
        rows = classes * components
        means = F.normalize(torch.randn(classes, components, dim, generator=generator), dim=-1)
        noise = torch.randn(rows, dim, args.memory_size, generator=generator)
        rings = means.view(rows, dim, 1) + 0.06 * noise
        pointer = torch.zeros(rows, dtype=torch.int64)
        self.bank = GaussianMixtureBank.from_reference_state(
            means, torch.full_like(means, 0.12), F.normalize(rings, dim=1), pointer
        ).to(args.device)
        self.plain = PlainEM(self.bank)
        self.labels = block_label(args.size, classes, 0).flatten()
        pixels = len(self.labels)
        own = means[self.labels.clamp(max=classes - 1), torch.randint(components, (pixels,))]
        features = F.normalize(own + 0.1 * torch.randn(pixels, dim, generator=generator), dim=1)
        self.features, self.labels = features.to(args.device), self.labels.to(args.device)
        self.log_prob = self.bank.log_prob(self.features)
        self.correct = self.log_prob.amax(2).argmax(1) == self.labels

    @torch.no_grad()
    def ours(self, em: bool = True) -> Tensor:
        bank = self.bank
        index = torch.where(self.labels < bank.num_classes, self.labels, 0)
        own = own_class_log_prob(self.log_prob, index)
        assignment, _ = sinkhorn_assign_all(own, self.labels, bank.num_classes)
        bank.record(self.features, self.labels, assignment, self.correct)
        bank.update() if em else bank.commit()
        return assignment

    @torch.no_grad()
    def loops(self, em: bool = True) -> Tensor:
        assignment = self.plain.record(self.features, self.log_prob, self.labels, self.correct)
        if em:
            self.plain.update(self.labels[self.labels < self.bank.num_classes].unique())
        return assignment

    def differences(self) -> dict[str, float]:
        """After one step of both.

        Raises:
            RuntimeError: they end in different places.
        """
        found = {
            "pixels assigned otherwise": float((self.ours() != self.loops()).float().mean()),
            "means": float((self.bank.means - self.plain.means).abs().max()),
            "scales": float((self.bank.scales - self.plain.scales).abs().max()),
        }
        if max(found.values()) > TOLERANCE:
            raise RuntimeError(f"the two versions of EM disagree, one of them is wrong: {found}")
        return found


def em(args: argparse.Namespace) -> dict[str, Any]:
    step = Step(args)
    differences = step.differences()
    calls = {
        "loops, no EM": partial(step.loops, em=False),
        "ours, no EM": partial(step.ours, em=False),
        "loops": step.loops,
        "ours": step.ours,
    }
    found = report(
        f"a training step of the mixtures, {len(step.labels)} pixels, {tuple(step.bank.means.shape)}, "
        f"{args.memory_size} features a component",
        side_by_side(calls, args.repeats, device=args.device, threads=args.threads),
        {
            "loops / ours, no EM": ("loops, no EM", "ours, no EM", ""),
            "loops / ours": ("loops", "ours", "at least 10"),
        },
    )
    print("  largest differences:", ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    if args.device != "cpu":
        # torch's error says where a step of ours waits for the GPU, if it does.
        torch.cuda.set_sync_debug_mode("error")
        step.ours()
        torch.cuda.set_sync_debug_mode("default")
        print("  ours waits for the GPU nowhere (torch's sync debug mode)")
    return found | {"differences": differences}


def block_label(size: tuple[int, int], classes: int, seed: int, block: int = 32) -> Tensor:
    """(H, W) int64: square regions of random classes, every twentieth one ignored (255)."""
    generator = torch.Generator().manual_seed(seed)
    cells = [-(-length // block) for length in size]
    label = torch.randint(0, classes, cells, generator=generator)
    label[torch.rand(cells, generator=generator) < 0.05] = 255
    label = label.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return label[: size[0], : size[1]].contiguous()
