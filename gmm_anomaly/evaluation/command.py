"""The model of a verb that evaluates one: the only part of this package that reaches back to the engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn


def model_config(args: argparse.Namespace, overrides: Sequence[str] = ()) -> CfgNode:
    """The config that a command's arguments ask for; ``overrides`` come last."""
    from gmm_anomaly.engine import build_config
    from gmm_anomaly.engine.output_dir import with_run_weights

    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    pairs = [*args.opts, *weights, *overrides]
    return with_run_weights(build_config(args.config_file, pairs), args.config_file, pairs)


def load_model(cfg: CfgNode) -> nn.Module:
    """The trained model of a config, in evaluation mode."""
    from gmm_anomaly.engine import Checkpointer, Trainer, inference_config

    model = Trainer.build_model(inference_config(cfg))
    Checkpointer(model, cfg=cfg).load_for_evaluation(cfg.MODEL.WEIGHTS)
    return model.eval()
