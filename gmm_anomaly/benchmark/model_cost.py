"""What a model costs at inference: parameters and multiply-adds of its parts, memory and time per image.

Behind ``tools/analyze_model.py``. Peak memory of a CPU run is that of the whole process, so every model is
measured in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import addmm_flop_jit, get_shape
from torch import Tensor, nn

from gmm_anomaly.engine import build_config, inference_config

from .device import clock, memory_now, memory_peak
from .readiness import NO_WEIGHTS, make_ready
from .twins import random_image

GIGABYTE = 1e9


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
        ``peak_memory`` and ``idle_memory`` in bytes: of the process with its libraries on the CPU, of the
        tensors on a GPU; ``device``, ``config``, ``size``.

    Raises:
        ValueError, FileNotFoundError: see :func:`build_config`.
    """
    torch.set_num_threads(threads)
    cfg = build_config(config_file, [*overrides, *NO_WEIGHTS])
    model = build_model(inference_config(cfg)).eval()
    make_ready(model)
    found = _time_and_memory(cfg, model, size, repeats)
    # Last: the trace that counts operations keeps every activation.
    parameters = {name: _parameters(part) for name, part in _parts(model).items()}
    return {
        "config": Path(config_file).stem,
        "size": list(size),
        "device": cfg.MODEL.DEVICE,
        "parameters": parameters | {"total": _parameters(model)},
        "multiply_adds": _multiply_adds(model, size) if count_operations else {},
        "passes": model.inference.passes(size) if hasattr(model, "inference") else 1,
        **found,
    }


def _time_and_memory(cfg: CfgNode, model: nn.Module, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    device = cfg.MODEL.DEVICE
    image = [{"image": random_image(size, 0), "height": size[0], "width": size[1]}]
    idle = memory_now(device)
    now, seconds = clock(device), []
    for turn in range(repeats + 1):
        start = now()
        with torch.no_grad():
            model(image)
        if turn or not repeats:
            seconds.append(now() - start)
    return {"seconds": median(seconds), "idle_memory": idle, "peak_memory": memory_peak(device)}


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    if getattr(model, "gives_masks", False):
        inner = model.network.model
        return {
            "backbone": inner.pixel_level_module.encoder,
            "decoder": inner.pixel_level_module.decoder,
            "classifier": inner.transformer_module,
        }
    return {name: getattr(model, name) for name in ("backbone", "decoder", "classifier")}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Traced(nn.Module):
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
def _multiply_adds(model: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    images = model.preprocess([{"image": random_image(size, 0)}]).tensor
    counted = FlopCountAnalysis(_Traced(model), images).set_op_handle(
        "aten::scaled_dot_product_attention", attention_multiply_adds, "aten::addmm_", addmm_flop_jit
    )
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    by_module = counted.by_module()
    names = {module: name for name, module in counted._model.named_modules()}
    counts = {name: float(by_module[names[part]]) for name, part in _parts(model).items()}
    return counts | {"total": float(counted.total())}


def attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> float:
    """Both matrix products of query (..., N, D), key (..., M, D) and value (..., M, E)."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    pairs = torch.Size(query[:-1]).numel() * key[-2]
    return float(pairs * (query[-1] + value[-1]))
