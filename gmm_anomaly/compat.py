"""The one place that knows which Detectron2 is installed, and what differs between the ways to install it.

Nothing here imports Detectron2 until a function is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode
    from torch import nn

# Distribution names under which Detectron2 is installed: the registry's republication, and upstream's own.
REGISTRY_NAME = "sal-detectron2"
UPSTREAM_NAME = "detectron2"

REGISTRY_WHEEL = "registry wheel"
UPSTREAM_GIT = "upstream git"
CHECKOUT = "checkout"
OTHER = "other"

INSTALL_ADVICE = (
    "`make setup` installs it (the registry's wheel); `make setup DETECTRON2=/path/to/checkout` or "
    "`DETECTRON2=git+URL` installs upstream"
)


@dataclass(frozen=True)
class Detectron2Info:
    """Which Detectron2 an import gives.

    Attributes:
        version: ``detectron2.__version__``. Upstream main still says 0.6, the release of 2021.
        location: folder of the package.
        kind: "registry wheel", "upstream git", "checkout" (installed from a source tree, or on the path) or
            "other".
        source: commit, URL or source folder where it is known, else "".
        compiled: whether the extension ``detectron2._C`` loads. Without it deformable convolutions and
            rotated boxes raise; this project uses neither.
    """

    version: str
    location: Path
    kind: str
    source: str
    compiled: bool


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


def detectron2_info() -> Detectron2Info:
    """Describe the installed Detectron2; imports it.

    Raises:
        ImportError: it cannot be imported (see ``require_detectron2``).
    """
    require_detectron2()
    package = importlib.import_module("detectron2")
    location = Path(str(package.__file__)).resolve().parent
    kind, source = _origin(location)
    return Detectron2Info(
        version=str(getattr(package, "__version__", "unknown")),
        location=location,
        kind=kind,
        source=source,
        compiled=_loads("detectron2._C"),
    )


def _origin(location: Path) -> tuple[str, str]:
    """Kind and source of the package in the folder ``location``."""
    for name in (REGISTRY_NAME, UPSTREAM_NAME):
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        url, commit, local = _direct_url(installed)
        in_place = local is not None and location.is_relative_to(local)
        if not in_place and Path(str(installed.locate_file("detectron2"))).resolve() != location:
            continue  # the metadata of a copy that another one on the path hides
        if name == REGISTRY_NAME:
            return REGISTRY_WHEEL, f"{name} {installed.version}"
        if commit:
            return UPSTREAM_GIT, f"{url}@{commit}"
        if local is not None and local.is_dir():
            return CHECKOUT, str(local)
        return OTHER, url
    if (location.parent / "setup.py").is_file():
        return CHECKOUT, str(location.parent)
    return OTHER, ""


def _direct_url(installed: Distribution) -> tuple[str, str, Path | None]:
    """URL, commit and local folder that a distribution was installed from (PEP 610); empty where unknown."""
    text = installed.read_text("direct_url.json")
    if not text:
        return "", "", None
    record = json.loads(text)
    url = str(record.get("url", ""))
    commit = str(record.get("vcs_info", {}).get("commit_id", ""))
    if commit or not url.startswith("file:"):
        return url, commit, None
    return url, "", Path(unquote(urlparse(url).path)).resolve()


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:  # absent, or built for another Python or torch
        return False
    return True


def add_upstream_keys(cfg: CfgNode) -> None:
    """Add, in place, the keys of newer upstream versions that the installed Detectron2's ``get_cfg()`` lacks.

    A run's ``config.yaml`` holds every key, so one written under upstream main could otherwise not be read
    under the registry's wheel. ``FLOAT32_PRECISION`` (August 2024 and later) has no effect there.
    """
    if "FLOAT32_PRECISION" not in cfg:
        cfg.FLOAT32_PRECISION = ""


def wrap_distributed(
    model: nn.Module, *, find_unused_parameters: bool = False, broadcast_buffers: bool = False
) -> nn.Module:
    """Wrap ``model`` for data-parallel training; the model itself when there is a single process.

    As Detectron2's ``create_ddp_model``, which names a GPU unless told otherwise, and torch refuses that for
    a model on the CPU (gloo). Here the device is the one that holds the model, or none.

    Args:
        model: on its final device; at least one parameter needs a gradient.
        find_unused_parameters: as in ``DistributedDataParallel``.
        broadcast_buffers: whether rank 0's buffers overwrite the others' before each forward pass. Off, as in
            Detectron2: a mixture's buffers are kept equal by its own reduction.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
        broadcast_buffers=broadcast_buffers,
    )


def silence_import_warnings() -> None:
    """Hide the warnings that importing Detectron2 and fvcore causes; a user can do nothing about them."""
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
