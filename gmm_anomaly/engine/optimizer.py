"""Optimiser and learning-rate schedule from the config."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, build_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

# What the names of a backbone's parameters contain, in the two meta-architectures.
BACKBONES = ("backbone.", "pixel_level_module.encoder.")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW with Detectron2's keys for momentum, decay and gradient clipping.

    Parameters outside the backbone learn ``SOLVER.HEAD_LR_FACTOR`` times faster; norm layers decay with
    ``SOLVER.WEIGHT_DECAY_NORM``.

    Raises:
        ValueError: unknown ``SOLVER.OPTIMIZER``.
    """
    keys = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=keys.BASE_LR,
        weight_decay=keys.WEIGHT_DECAY,
        weight_decay_norm=keys.WEIGHT_DECAY_NORM,
        weight_decay_bias=keys.WEIGHT_DECAY_BIAS,
        bias_lr_factor=keys.BIAS_LR_FACTOR,
        lr_factor_func=lambda name: 1.0 if any(part in name for part in BACKBONES) else keys.HEAD_LR_FACTOR,
    )
    optimizer: torch.optim.Optimizer
    if keys.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, keys.BASE_LR, keys.MOMENTUM, nesterov=keys.NESTEROV)
    elif keys.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, keys.BASE_LR)
    else:
        raise ValueError(f'SOLVER.OPTIMIZER: expected "SGD" or "ADAMW", found {keys.OPTIMIZER!r}')
    return maybe_add_gradient_clipping(cfg, optimizer)


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """``WarmupPolyLR``, or any schedule Detectron2 knows, by ``SOLVER.LR_SCHEDULER_NAME``."""
    keys = cfg.SOLVER
    if keys.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        PolynomialDecayParamScheduler(base_value=1.0, power=keys.POLY_LR_POWER),
        keys.WARMUP_FACTOR,
        min(keys.WARMUP_ITERS / keys.MAX_ITER, 1.0),
        keys.WARMUP_METHOD,
        keys.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=keys.MAX_ITER)
