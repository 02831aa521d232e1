"""What differs between the ways to install Detectron2, and between its versions.

Nothing here imports Detectron2 until a function is called.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode
    from torch import nn

INSTALL_ADVICE = (
    "`make setup` installs it (the registry's wheel); `make setup DETECTRON2=/path/to/checkout` or "
    "`DETECTRON2=git+URL` installs upstream"
)


def require_detectron2() -> None:
    """Raise ``ImportError`` with the command that mends it unless ``import detectron2`` works."""
    try:
        importlib.import_module("detectron2")
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise ImportError(f"Detectron2 is not installed: {INSTALL_ADVICE}.") from error
        raise ImportError(
            f"Detectron2 is installed, but the package {error.name} that it imports is not: run `make setup`."
        ) from error
    except Exception as error:
        raise ImportError(
            f"Detectron2 is installed, but importing it fails ({type(error).__name__}: {error}). It may have "
            f"been built with another torch: {INSTALL_ADVICE}."
        ) from error


def add_upstream_keys(cfg: CfgNode) -> None:
    """Add, in place, the keys of newer upstream versions that the installed Detectron2's ``get_cfg()`` lacks.

    A run's ``config.yaml`` holds every key, so one written under upstream main could otherwise not be read
    under the registry's wheel. ``FLOAT32_PRECISION`` (August 2024 and later) has no effect there.
    """
    if "FLOAT32_PRECISION" not in cfg:
        cfg.FLOAT32_PRECISION = ""


def wrap_distributed(model: nn.Module) -> nn.Module:
    """Wrap ``model`` for data-parallel training; the model itself when there is a single process.

    As Detectron2's ``create_ddp_model``, which names a GPU unless told otherwise, and torch refuses that for
    a model on the CPU (gloo). Here the device is the one that holds the model, or none. Rank 0's buffers do
    not overwrite the others' before each forward pass, as in Detectron2: a mixture's are kept equal by its
    own reduction.

    Args:
        model: on its final device; at least one parameter needs a gradient.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def silence_import_warnings() -> None:
    """Hide the warnings that importing Detectron2 and fvcore causes; a user can do nothing about them."""
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
