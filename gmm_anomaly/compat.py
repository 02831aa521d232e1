"""What differs between installations: where this project's configs and scripts lie (beside the package in a
checkout, inside it in a wheel), how Detectron2 was installed and in which version, and C libraries.

Nothing here imports Detectron2 until a function is called.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode
    from torch import nn

INSTALL_ADVICE = (
    "in a checkout of this project `make setup` installs it (the registry's wheel), `make setup "
    "DETECTRON2=/path/to/checkout` or `DETECTRON2=git+URL` upstream; elsewhere `pip install "
    "--no-build-isolation git+https://github.com/facebookresearch/detectron2`"
)

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries them inside the package (setup.py).
ROOT = _PACKAGE / "repository" if (_PACKAGE / "repository").is_dir() else _PACKAGE.parent

# The model that comes along: what --weights and MODEL.WEIGHTS call it, and its file, with its config inside.
BUNDLED = "bundled"
BUNDLED_FILE = _PACKAGE / "bundled" / "road.pth"

# Numbers of mallopt's parameters in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1
OWN_BLOCKS_FROM = 2**30


def find_config(config: str | os.PathLike[str]) -> Path:
    """The file of a config: a path as it is, one below the repository, with or without "configs/", a name
    that only one file there has ("mask2former_swin_t"), or "bundled": that of the model that comes along.

    Raises:
        FileNotFoundError: it is in none of these places.
    """
    if config == BUNDLED:
        return BUNDLED_FILE
    for path in (Path(config).expanduser(), ROOT / config, ROOT / "configs" / config):
        if path.is_file():
            return path
    folder = ROOT / "configs"
    named = [path for path in folder.glob("*/*.yaml") if path.stem == os.fspath(config)]
    if len(named) == 1:
        return named[0]
    known = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.yaml"))]
    given = Path(config).as_posix().removeprefix("configs/")
    nearest = get_close_matches(given, known, n=1)
    meant = f"; did you mean {nearest[0]}?" if nearest else ""
    raise FileNotFoundError(f"--config-file: no file {os.fspath(config)}, here or in {ROOT}{meant}")


def require_detectron2() -> None:
    """Raise ``ImportError`` with the command that mends it unless ``import detectron2`` works."""
    try:
        importlib.import_module("detectron2")
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise ImportError(f"Detectron2 is not installed: {INSTALL_ADVICE}.") from error
        raise ImportError(
            f"Detectron2 is installed, but the package {error.name} that it imports is not: `make setup`, or "
            "install that package."
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


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc's heap keep what is freed, and serve blocks of up to 1 GiB from it.

    By default each large activation is a mapping of its own, which the system fills with zeros page by page
    and takes back: half the time of a training iteration of a small network on the CPU. The peak of memory
    is the same, the process only stays at it.

    Changes the whole process, so it is for programs to call, not for libraries.

    Returns:
        Whether anything was changed: not where the C library has no such setting, and not where the
        environment already tunes its heap (``MALLOC_*``, ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT)) and bool(mallopt(M_MMAP_THRESHOLD, OWN_BLOCKS_FROM))


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Inside, these loggers say nothing below an error."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
