"""Where configs and weights are, and what to do where they are not."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.config import CfgNode

# Of a checkout; an installed wheel has no configs beside it.
ROOT = Path(__file__).resolve().parents[2]

_DEMO = "synthetic/effnetlite0_deeplabv3plus_gmm"
WEIGHTS_ADVICE = f"""Weights come from a training. In a checkout, five minutes on two CPU cores and no data:
  python train_net.py --num-gpus 0 --config-file configs/{_DEMO}.yaml
then predict with
  --config configs/{_DEMO}.yaml --weights output/{_DEMO}/model_final.pth
Released checkpoints of GMMSeg and MMSegmentation are made to fit by tools/convert_weights.py; configs of
Mask2Former get theirs from the hub (MODEL.MASK2FORMER.WEIGHTS)"""


def find_config(config: str | os.PathLike[str]) -> Path:
    """The file of a config: a path as it is, or below the checkout that this package lies in.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    for path in (Path(config), ROOT / config):
        if path.is_file():
            return path
    message = f"config: no file {os.fspath(config)}"
    if (ROOT / "configs").is_dir():
        raise FileNotFoundError(f"{message}, here or in {ROOT}; the repository's are in {ROOT / 'configs'}")
    raise FileNotFoundError(
        f"{message}. The configs belong to the repository and are not part of the installed package: give "
        "the config.yaml that a training left beside its checkpoints, or the path of a config in a checkout"
    )


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
