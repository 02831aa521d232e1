"""Weights by name: ``torchvision:resnet50.IMAGENET1K_V2``, ``timm:resnet50.a1_in1k``. The library finds them,
downloads them and keeps them in its own cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gmm_anomaly.modeling.backbones.weights import downloaded

from .whole_backbone import KEY, load_backbone

logger = logging.getLogger(__name__)


class LibraryWeights(NamedTuple):
    """Tensors by the library's names; mean and std of the RGB images they were trained on, 0 to 1."""

    state: dict[str, Tensor]
    mean: Sequence[float]
    std: Sequence[float]


def is_library_name(weights: str) -> bool:
    """Whether ``MODEL.WEIGHTS`` names weights of a library, not a file."""
    return weights.partition(":")[0] in LIBRARIES


def load_library_weights(model: nn.Module, weights: str) -> None:
    """Load the weights that ``weights`` names into ``model.backbone``.

    Warns if the model does not normalise images as these weights expect.

    Args:
        model: a segmentor with ``backbone``, ``pixel_mean`` and ``pixel_std``.
        weights: "LIBRARY:NAME" or "LIBRARY:NAME.TAG"; without a tag the library's default for that name.

    Raises:
        ValueError: a name the library does not have weights for, or a network that is not the backbone.
        OSError: weights that cannot be downloaded, and are not in the library's cache.
    """
    library, _, name = weights.partition(":")
    if not hasattr(model, "backbone"):
        raise ValueError(f"{KEY}: {weights} is a backbone's, a {type(model).__name__} has none of its own")
    found = LIBRARIES[library](name)
    load_backbone(model.backbone, found.state, weights)
    for ours, theirs, key in (
        (model.pixel_mean, found.mean, "MODEL.PIXEL_MEAN"),
        (model.pixel_std, found.std, "MODEL.PIXEL_STD"),
    ):
        given = ours.flatten().tolist()
        wanted = [round(255 * value, 3) for value in theirs]
        if len(given) == len(wanted) and max(abs(a - b) for a, b in zip(given, wanted, strict=True)) > 1:
            logger.warning(
                "%s is %s, %s was trained with %s, on RGB images (INPUT.FORMAT)", key, given, weights, wanted
            )


def _torchvision(name: str) -> LibraryWeights:
    from torchvision.models import get_model_weights

    network, _, tag = name.partition(".")
    try:
        known = get_model_weights(network)
    except ValueError as error:
        raise ValueError(
            f"{KEY}: torchvision has no network {network!r}; torchvision.models.list_models() lists all"
        ) from error
    if tag and tag not in known.__members__:
        raise ValueError(
            f"{KEY}: torchvision's {network} has the weights {', '.join(one.name for one in known)}, found "
            f"{tag!r}"
        )
    chosen = known[tag] if tag else known.DEFAULT
    state = downloaded(
        lambda: chosen.get_state_dict(progress=False, check_hash=True),
        KEY,
        f"torchvision:{name}",
        f"{chosen.url} (into {torch.hub.get_dir()}/checkpoints, or anywhere)",
    )
    normalise = chosen.transforms()
    return LibraryWeights(state, normalise.mean, normalise.std)


def _timm(name: str) -> LibraryWeights:
    import timm
    from timm.models import get_pretrained_cfg

    try:
        known = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(
            f"{KEY}: timm has no weights {name!r} ({error}); timm.list_pretrained() names those it has"
        ) from error
    if not known.has_weights:
        raise ValueError(f"{KEY}: timm has no weights for {name}; timm.list_pretrained() names those it has")
    network = downloaded(
        lambda: timm.create_model(name, pretrained=True),
        KEY,
        f"timm:{name}",
        f"the weights of https://huggingface.co/{known.hf_hub_id}" if known.hf_hub_id else known.url,
    )
    return LibraryWeights(network.state_dict(), known.mean, known.std)


LIBRARIES: dict[str, Callable[[str], LibraryWeights]] = {"torchvision": _torchvision, "timm": _timm}
