"""What to do where a model has no weights."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode

_DEMO = "synthetic/effnetlite0_deeplabv3plus_gmm"
WEIGHTS_ADVICE = f"""Weights come from a training: five minutes on two CPU cores and no data:
  gmm-anomaly train --num-gpus 0 --config-file {_DEMO}.yaml
(in a checkout also python train_net.py), then predict with
  --config {_DEMO}.yaml --weights output/{_DEMO}/model_final.pth
Released checkpoints of GMMSeg and MMSegmentation are made to fit by tools/convert_weights.py of the
repository; configs of Mask2Former get theirs from the hub (MODEL.MASK2FORMER.WEIGHTS)"""


def require_weights(cfg: CfgNode, *, given: bool) -> None:
    """Raise unless ``MODEL.WEIGHTS`` is a file or the model needs none.

    Raises:
        ValueError: no weights were ``given``, and the config names no checkpoint that is there.
        FileNotFoundError: the file that was given is not there.
    """
    weights = cfg.MODEL.WEIGHTS
    # A Mask2Former of the hub comes trained; load_for_evaluation knows whether all of it does.
    if Path(weights).is_file() or (not weights and cfg.MODEL.MASK2FORMER.WEIGHTS):
        return
    if given:
        raise FileNotFoundError(f"weights: no file {weights}. {WEIGHTS_ADVICE}")
    # A config may name what a training starts from.
    raise ValueError(f"no weights were given (--weights FILE). {WEIGHTS_ADVICE}")
