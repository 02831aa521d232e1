"""Backbone and decoder as one function, compiled where that is asked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from .decoders.base import Decoded


def pixel_features(
    backbone: nn.Module, decoder: nn.Module, images: Tensor, labels: Tensor | None = None
) -> tuple[dict[str, Tensor], Decoded]:
    """images: (B, 3, H, W), normalised; labels: (B, H, W), while training -> the backbone's pyramid, and what
    the decoder makes of it."""
    pyramid = backbone(images)
    return pyramid, decoder(pyramid, labels)


@cache
def compiled_pixel_features(backend: str = "inductor") -> Callable[..., tuple[dict[str, Tensor], Decoded]]:
    """:func:`pixel_features`, compiled when it is first called.

    Modules are its arguments and stay what they are, so that the keys of a checkpoint do too. Each size of a
    batch is compiled for itself, up to torch's limit (``torch._dynamo.config.recompile_limit``, 8 with
    training and inference together); batches of other sizes run as they would without.

    Args:
        backend: of ``torch.compile``.
    """
    # Dropout draws the numbers that it draws without, so that a run can be compared with one not compiled.
    options = {"fallback_random": True} if backend == "inductor" else None
    # One graph for any size takes too long to trace: "SAME" padding depends on the sizes of all layers.
    return torch.compile(pixel_features, backend=backend, options=options, dynamic=False)


def check_compiler(device: str) -> None:
    """Raise ValueError unless ``torch.compile`` finds here what it needs for ``device``."""
    if device.startswith("cuda"):
        what, found = "the package triton", importlib.util.find_spec("triton")
    else:
        # What torch's inductor calls.
        name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        what = f"the C++ compiler {name} (or another one in CXX) and Python's headers"
        found = shutil.which(name)
    if found is None:
        raise ValueError(
            f"MODEL.COMPILE: compiling for {device} needs {what}; install it or set MODEL.COMPILE False"
        )
