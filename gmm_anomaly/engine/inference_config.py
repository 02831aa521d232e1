"""What a trained model needs no more when it only predicts."""

from __future__ import annotations

from detectron2.config import CfgNode


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
