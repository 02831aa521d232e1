"""A trained model to hand on: weights in half precision, and the config that goes with them."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gmm_anomaly.data.atomic import replacing

from .checkpoint import Checkpointer
from .inference_config import inference_config

MODEL, CONFIG = "model.pth", "config.yaml"
MEGABYTE = 1e6


def write_small_checkpoint(cfg: CfgNode, weights: str, folder: Path, *, at_most: float = 10.0) -> Path:
    """Write ``model.pth`` and ``config.yaml`` into ``folder``; whatever takes a config and weights takes
    them.

    Parameters are halved in precision; buffers (moments of norms, mixtures, feature distances) are small and
    stay as they are.

    Args:
        cfg: of the training. weights: its checkpoint.
        folder: made if need be; files of the same names are replaced.
        at_most: megabytes that ``model.pth`` may have.

    Returns:
        The path of ``config.yaml``.

    Raises:
        ValueError: the file would be larger; nothing is written.
    """
    light = inference_config(cfg)
    model = build_model(light)
    Checkpointer(model).load_for_evaluation(weights)
    parameters = {name for name, _ in model.named_parameters()}
    state = {
        name: value.detach().cpu().half() if name in parameters else value.detach().cpu()
        for name, value in model.state_dict().items()
    }
    target = folder / MODEL
    with replacing(target) as temporary:
        torch.save({"model": state}, temporary)
        size = temporary.stat().st_size / MEGABYTE
        if size > at_most:
            raise ValueError(f"{target}: the model takes {size:.1f} MB, at most {at_most} MB were asked for")
    light = light.clone()
    light.defrost()
    # The folder may be moved: whoever uses the files names them.
    light.MODEL.WEIGHTS = ""
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(light.dump())
    return folder / CONFIG
