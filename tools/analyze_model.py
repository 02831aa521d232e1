#!/usr/bin/env python
"""What models cost at inference: parameters, multiply-adds by part, memory and time per image, as a table.

python tools/analyze_model.py --config-file configs/cityscapes/*.yaml --size 1024 2048
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from fvcore.nn import FlopCountAnalysis  # noqa: E402
from fvcore.nn.jit_handles import addmm_flop_jit, get_shape  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gmm_anomaly.engine import build_config, inference_config  # noqa: E402
from tools.benchmarks.models import make_ready, random_image, without_weights  # noqa: E402
from tools.benchmarks.timing import clock, memory_now, memory_peak  # noqa: E402

PARTS = ("backbone", "decoder", "classifier")


def measure(
    config_file: str,
    overrides: list[str],
    size: tuple[int, int],
    repeats: int,
    threads: int,
    count_operations: bool = True,
) -> dict[str, Any]:
    """Build a model by config (pretrained weights are left out: they change no cost) and measure it.

    Args:
        config_file: as for training. overrides: KEY VALUE pairs.
        size: height and width of the image, in pixels.
        repeats: images that count, after one to warm up; 0: that one counts.
        threads: processor threads.
        count_operations: False leaves ``multiply_adds`` empty; its trace keeps every activation, several
            times the memory of an inference.

    Returns:
        ``parameters`` and ``multiply_adds`` (of one look at the whole image) {part: number} with a ``total``;
        ``passes`` through the network per image, in windows or at several scales as ``TEST`` says;
        ``seconds`` per image, the median, with the scores of ``TEST.SCORES``, processor time on the CPU;
        ``peak_memory`` and ``idle_memory`` in bytes: of the process with its libraries on the CPU, so measure
        each model in a process of its own, of the tensors on a GPU; ``device``, ``config``, ``size``.

    Raises:
        ValueError, FileNotFoundError: see :func:`build_config`.
    """
    torch.set_num_threads(threads)
    cfg = without_weights(build_config(config_file, overrides))
    device = cfg.MODEL.DEVICE
    model = build_model(inference_config(cfg)).eval()
    make_ready(model)
    image = [{"image": random_image(size, 0), "height": size[0], "width": size[1]}]
    idle, now, seconds = memory_now(device), clock(device), []
    for turn in range(repeats + 1):
        start = now()
        with torch.no_grad():
            model(image)
        if turn or not repeats:
            seconds.append(now() - start)
    peak = memory_peak(device)
    measured = {name: parameters(part) for name, part in parts(model).items()}
    return {
        "config": Path(config_file).stem,
        "size": list(size),
        "device": device,
        "parameters": measured | {"total": parameters(model)},
        # After the memory: the trace that counts operations keeps every activation.
        "multiply_adds": multiply_adds(model, size) if count_operations else {},
        "passes": model.inference.passes(size) if hasattr(model, "inference") else 1,
        "seconds": median(seconds),
        "idle_memory": idle,
        "peak_memory": peak,
    }


def parts(model: nn.Module) -> dict[str, nn.Module]:
    if not getattr(model, "gives_masks", False):
        return {name: getattr(model, name) for name in PARTS}
    inner = model.network.model
    pixels = inner.pixel_level_module
    return dict(zip(PARTS, (pixels.encoder, pixels.decoder, inner.transformer_module), strict=True))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Traced(nn.Module):
    """The network of a segmentor as a function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if getattr(self.model, "gives_masks", False):
            return self.model.network(images).masks_queries_logits
        pyramid = self.model.backbone(images)
        return self.model.classifier(self.model.decoder(pyramid).features).logits


@torch.no_grad()
def multiply_adds(model: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    images = model.preprocess([{"image": random_image(size, 0)}]).tensor
    counted = FlopCountAnalysis(Traced(model), images).set_op_handle(
        "aten::scaled_dot_product_attention", attention_multiply_adds, "aten::addmm_", addmm_flop_jit
    )
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    names = {module: name for name, module in counted._model.named_modules()}
    counts = {name: float(counted.by_module()[names[part]]) for name, part in parts(model).items()}
    return counts | {"total": float(counted.total())}


def attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> float:
    """Both matrix products of query (..., N, D), key (..., M, D) and value (..., M, E)."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    pairs = torch.Size(query[:-1]).numel() * key[-2]
    return float(pairs * (query[-1] + value[-1]))


def row(found: dict[str, Any]) -> list[Any]:
    counts = found["multiply_adds"]
    millions = [counts[part] / 1e9 if counts else None for part in (*PARTS, "total")]
    size = found["parameters"]["total"] / 1e6
    return [found["config"], size, *millions, found["passes"], found["peak_memory"] / 1e9, found["seconds"]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="FILE", help="one or more configs: a row each"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="of the image (1024 2048)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="images that count, after one to warm up (3); 0: that one"
    )
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument(
        "--memory-and-time", action="store_true",
        help="leave the multiply-adds out: counting them takes several times the memory of an inference",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all configs"
    )
    args = parser.parse_args(arguments)
    for config in args.config_file:
        if not Path(config).is_file():
            parser.error(f"--config-file: no file {config}")

    results = []
    # A process each, whose peak of memory is that of one model.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for config in args.config_file:
            size, counting = tuple(args.size), not args.memory_and_time
            given = (config, args.opts, size, args.repeats, args.threads, counting)
            try:
                results.append(pool.apply(measure, given))
            except (ValueError, OSError) as error:
                parser.exit(1, f"{config}: {error}\n")
            print(f"measured {config}", file=sys.stderr, flush=True)

    on_gpu = results[0]["device"].startswith("cuda")
    memory = "GPU memory" if on_gpu else "process memory"
    seconds = "time" if on_gpu else f"processor time with {args.threads} thread(s)"
    height, width = args.size
    print(f"one image of {height} x {width}: multiply-adds (G) of one look, peak of {memory}, {seconds}")
    counted = [f"{part} G" for part in (*PARTS, "total")]
    headers = ["config", "params M", *counted, "passes", "memory GB", "seconds"]
    formats = ("", ".1f", *[".1f"] * 4, "", ".2f", ".3g")
    print(tabulate([row(found) for found in results], headers, floatfmt=formats, tablefmt="github"))
    if args.json:
        args.json.write_text(json.dumps({"models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
