"""Weight files for timm models, also those of the networks' own authors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .weights import COUNTER, downloaded, load_complete, misfits, read_state_dict, resolve_weight_file


def load_timm_weights(model: nn.Module, name: str, weights: str, key: str = "MODEL.TIMM.WEIGHTS") -> None:
    """Load ImageNet weights from a file into a timm model, whole or a feature pyramid.

    Three kinds of files fit: timm's own names; the authors' names, where timm has a filter for them (Swin,
    DINOv2, ConvNeXt, ...; position embeddings are resampled, buffers that depend on the image size dropped);
    and those of another implementation of the same network whose tensors come in the same order with the same
    shapes (counters of batch norm aside).

    Args:
        model: a timm model named ``name``.
        weights: a file, or "package:NAME/FILE".
        key: config key that errors name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that fits neither by name nor by order. Nothing is loaded then.
    """
    path = resolve_weight_file(weights, key)
    load_timm_state(model, name, read_state_dict(path, key), path, key)


def create_timm_model(name: str, *, weights: str, key: str, **options: Any) -> nn.Module:
    """``timm.create_model``, with ImageNet weights from the hub if ``weights`` is "hub", else random ones.

    Raises:
        OSError: weights that cannot be downloaded. Whatever timm raises for a model it cannot build.
    """
    import timm

    # First without: errors of the network and of the name are told apart.
    model = timm.create_model(name, pretrained=False, **options)
    if weights != "hub":
        return model
    return downloaded(
        lambda: timm.create_model(name, pretrained=True, **options),
        key,
        f'"hub", ImageNet weights of timm\'s {name},',
        "them from https://huggingface.co/timm",
    )


def load_timm_state(
    model: nn.Module, name: str, state: dict[str, Tensor], source: Path | str, key: str
) -> None:
    """:func:`load_timm_weights` with tensors that ``source``, as messages call it, gave.

    Raises:
        ValueError: as there.
    """
    if misfits(model, state):
        import timm

        # Names and shapes are enough.
        with torch.device("meta"):
            whole = timm.create_model(name, pretrained=False)
        translated = (_by_filter(whole, state), _by_order(whole, state))
        readings = [state, *(_flattened(names, model) for names in translated)]
        # If none fits, the error tells what the one that comes closest lacks.
        state = min(readings, key=lambda reading: len(misfits(model, reading)))
    load_complete(model, state, source, name, key)


def _by_filter(whole: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under timm's names, as timm's filter for this family of models translates it."""
    filter_state = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if filter_state is None:
        return state
    try:
        return filter_state(dict(state), whole)
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError):
        # Written for its own family's files; it may stumble over others. Nothing fits by name then.
        return {}


def _by_order(whole: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of ``whole`` if all shapes agree in their order, else nothing."""
    wanted = {name: value for name, value in whole.state_dict().items() if not name.endswith(COUNTER)}
    if [value.shape for value in wanted.values()] != [value.shape for value in state.values()]:
        return {}
    return dict(zip(wanted, state.values(), strict=True))


def _flattened(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Names of the whole model -> of its feature pyramid, which takes ``layers.0`` out as ``layers_0``."""
    children = {name for name, _ in model.named_children()}
    result = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        second, _, inner = rest.partition(".")
        flat = f"{first}_{second}" in children and first not in children
        result[f"{first}_{second}.{inner}" if flat else name] = value
    return result
