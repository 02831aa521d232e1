"""The part of a segmentor that is a function of tensors, and the same compiled (``MODEL.COMPILE``)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .decoders.base import Decoded

PixelFeatures = Callable[..., tuple[dict[str, Tensor], Decoded]]


def pixel_features(
    backbone: nn.Module, decoder: nn.Module, images: Tensor, labels: Tensor | None = None
) -> tuple[dict[str, Tensor], Decoded]:
    """images: (B, 3, H, W), normalised; labels: (B, H, W), while training -> the backbone's pyramid, and what
    the decoder makes of it."""
    pyramid = backbone(images)
    return pyramid, decoder(pyramid, labels)


@cache
def compiled_pixel_features(backend: str = "inductor") -> PixelFeatures:
    """:func:`pixel_features`, compiled when it is first called.

    Modules are its arguments and stay what they are, so that the keys of a checkpoint do too. Each size of a
    batch is compiled for itself, up to torch's limit (``torch._dynamo.config.recompile_limit``, 8 with
    training and inference together); batches of other sizes run as they would without.

    Args:
        backend: of ``torch.compile``.
    """
    # Dropout draws the numbers that it draws without, so that a run can be compared with one not compiled.
    options = {"fallback_random": True} if backend == "inductor" else None
    # One graph for any size takes too long to trace: the padding of each layer of an EfficientNet ("SAME") is
    # an expression of the sizes of all layers before it.
    return torch.compile(pixel_features, backend=backend, options=options, dynamic=False)


def check_compiler(device: str) -> None:
    """Raise ValueError unless ``torch.compile`` finds here what it needs for ``device``."""
    advice = "or set MODEL.COMPILE False"
    if device.startswith("cuda"):
        if importlib.util.find_spec("triton") is None:
            raise ValueError(
                f"MODEL.COMPILE: compiling for a GPU needs the package triton; install it {advice}"
            )
        return
    # What torch's inductor calls.
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"MODEL.COMPILE: compiling for the CPU needs a C++ compiler, found no {compiler}; install it "
            f"(Debian, Ubuntu: apt install g++), name another one in the environment variable CXX, {advice}"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ValueError(
            f"MODEL.COMPILE: compiling for the CPU needs Python's headers, found no {header}; install them "
            f"(Debian, Ubuntu: apt install python3-dev) {advice}"
        )
