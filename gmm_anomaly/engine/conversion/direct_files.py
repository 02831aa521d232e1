"""Files of other code bases that ``MODEL.WEIGHTS`` names: loaded where they are a whole backbone, else
refused. Nothing is left half filled in silence."""

from __future__ import annotations

from typing import Any

from torch import nn

from gmm_anomaly.modeling.backbones.weights import WRAPPERS, tensors_of

from .source import PARTS
from .whole_backbone import ADDED, KEY, load_backbone

HEADS = tuple(part for part in PARTS if part != "backbone.")
# Counters, and statistics that networks without batch norm's (Caffe2's) do not have.
STATISTICS = ("num_batches_tracked", "running_mean", "running_var")


def fill_backbone(model: nn.Module, checkpoint: dict[str, Any], source: str) -> bool:
    """Load a file of a backbone alone, by torchvision's, timm's or its authors' names.

    Args:
        model: a segmentor. checkpoint: as Detectron2 reads a file, with an entry "model"; a state dict that
            lies one level deeper is taken out. source: the file, for messages.

    Returns:
        False, with nothing loaded, if the names are those of the model or Detectron2 is to match them.

    Raises:
        ValueError: another network, or a checkpoint of MMSegmentation.
    """
    names = checkpoint["model"]
    for wrapper in WRAPPERS:
        if isinstance(names, dict) and isinstance(names.get(wrapper), dict):
            names = checkpoint["model"] = names[wrapper]
    if checkpoint.get("matching_heuristics") or not isinstance(names, dict):
        return False
    own = model.state_dict()
    if any(str(name).removeprefix("module.") in own for name in names):
        return False
    converter = f"tools/convert_weights.py --config-file CONFIG {source} OUTPUT.pth"
    if any(str(name).removeprefix("module.").startswith(HEADS) for name in names):
        raise ValueError(f"{KEY}: {source} is a checkpoint of MMSegmentation; convert it with {converter}")
    state = tensors_of(names)
    if not state or not hasattr(model, "backbone"):
        raise ValueError(f"{KEY}: nothing in {source} has a place in the {type(model).__name__}")
    try:
        load_backbone(model.backbone, state, source)
    except ValueError as error:
        raise ValueError(f"{error} What fits is listed by {converter}") from error
    return True


def check_backbone_filled(missing: list[str], source: str) -> None:
    """Refuse a file that filled the backbone in part.

    Args:
        missing: the model's names that it did not fill. source: the file, for messages.

    Raises:
        ValueError: some of them are of a pretrained network's layers.
    """
    layers = [
        name
        for name in missing
        if name.startswith("backbone.")
        and not name.removeprefix("backbone.").startswith(ADDED)
        and not name.endswith(STATISTICS)
    ]
    if layers:
        raise ValueError(
            f"{KEY}: {source} leaves {len(layers)} tensors of the backbone unfilled "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}); is it of another network? "
            "Weights by other names are converted by tools/convert_weights.py"
        )
