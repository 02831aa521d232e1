"""A trained model that only predicts: what its config does without, and its weights in a small file."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gmm_anomaly.data.atomic import replacing

from .checkpoint import Checkpointer

MODEL, CONFIG = "model.pth", "config.yaml"
MEGABYTE = 1e6


def inference_config(cfg: CfgNode) -> CfgNode:
    """The config with which a model is built that gets complete weights and is not trained.

    Without pretrained weights, which need not be there then, and without the feature memory: at the paper's
    sizes it is gigabytes (6.1 GB with 150 classes of 5 components), and only EM reads it.

    Args:
        cfg: of the training; stays as it is.

    Returns:
        A frozen config. A checkpoint of the training loads into its model.
    """
    light = cfg.clone()
    light.defrost()
    light.MODEL.BACKBONE.WEIGHTS = ""
    light.MODEL.GMM.MEMORY_SIZE = light.MODEL.GMM.SAMPLES_PER_UPDATE
    light.MODEL.GMM.SAVE_MEMORY = False
    light.freeze()
    return light


def write_small_checkpoint(cfg: CfgNode, weights: str, folder: Path, *, at_most: float = 10.0) -> Path:
    """Write ``model.pth`` and ``config.yaml`` into ``folder``, a model to hand on: whatever takes a config
    and weights takes them.

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
    light = inference_config(cfg).clone()
    light.defrost()
    model = build_model(light)
    Checkpointer(model).load_for_evaluation(weights)
    parameters = dict(model.named_parameters())
    state = {
        name: value.cpu().half() if name in parameters else value.cpu()
        for name, value in model.state_dict().items()
    }
    target = folder / MODEL
    with replacing(target) as temporary:
        torch.save({"model": state}, temporary)
        size = temporary.stat().st_size / MEGABYTE
        if size > at_most:
            raise ValueError(f"{target}: the model takes {size:.1f} MB, at most {at_most} MB were asked for")
    # The folder may be moved: whoever uses the files names them.
    light.MODEL.WEIGHTS = ""
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(light.dump())
    return folder / CONFIG
