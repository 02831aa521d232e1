"""Optimiser, schedule, and Detectron2's default trainer with this project's loop, data and evaluation."""

from __future__ import annotations

import logging
import re
import weakref
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.solver import LRMultiplier, build_lr_scheduler
from detectron2.solver.build import (
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.data import build_test_loader, build_train_loader
from gmm_anomaly.data.build import lost_workers_explained, run_seed

from .checkpoint import Checkpointer
from .config import with_weights
from .evaluation import evaluate, verify_expected_results
from .feature_distance import FeatureDistanceHook
from .health_hook import health_hooks
from .hooks import BestCheckpoint, CheckpointHook, EMHook, PrototypeHook, StepSeeds
from .launch import Interrupted, Interruption
from .loggers import RunWriter, require_logger
from .output_dir import MetricsWriter
from .train_loop import ANEW, TrainLoop, amp_dtype

logger = logging.getLogger(__name__)

# What the names of a backbone's parameters contain, in the two meta-architectures.
BACKBONES = ("backbone.", "pixel_level_module.encoder.")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW with Detectron2's keys for momentum, decay and gradient clipping.

    Parameters outside the backbone learn ``SOLVER.HEAD_LR_FACTOR`` times faster; norm layers decay with
    ``SOLVER.WEIGHT_DECAY_NORM``, with ``MODEL.GMM.RULES`` "released" those of the backbone alone.

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
    if cfg.MODEL.GMM.RULES == "released":
        # There what has "norm" in its name is spared, but in the head; MiT's stages end with norms without.
        spared = {v for name, v in model.named_parameters() if re.match(r"backbone\.(?!norm\d\.)", name)}
        single = [{**group, "params": [v]} for group in groups for v in group["params"]]
        decay = {"weight_decay": keys.WEIGHT_DECAY}
        groups = reduce_param_groups(g if g["params"][0] in spared else g | decay for g in single)
    optimizer: torch.optim.Optimizer
    # One kernel instead of many, and what leaves out a step without a word from the host.
    fused = cfg.MODEL.DEVICE.startswith("cuda") or None
    if keys.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, keys.BASE_LR, keys.MOMENTUM, nesterov=keys.NESTEROV, fused=fused)
        if fused and keys.MOMENTUM:
            # torch's own first momentum is left unset by a first step that overflows.
            for parameter in (one for group in optimizer.param_groups for one in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    elif keys.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, keys.BASE_LR, fused=fused)
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


class Trainer(DefaultTrainer):
    """Trains a segmentor by config; mixtures are fitted by :class:`EMHook` while the features learn.

    Args:
        cfg: a frozen config from :func:`gmm_anomaly.engine.build_config`.
    """

    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_scheduler)
    build_train_loader = staticmethod(build_train_loader)
    build_test_loader = staticmethod(build_test_loader)

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor cannot build a distributed model on the CPU, or use mixed precision
        # there.
        TrainerBase.__init__(self)
        require_logger(cfg)
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.segmentor = model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainLoop(
            wrap_distributed(model),
            self.build_train_loader(cfg),
            optimizer,
            amp=amp_dtype(cfg),
            non_finite=cfg.SOLVER.NON_FINITE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            cfg=cfg,
            save_to_disk=comm.is_main_process(),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        # Until a checkpoint that is resumed tells another one.
        self.seeds = StepSeeds(run_seed(cfg), fixed=cfg.SEED >= 0)
        self.interruption = Interruption()
        self.best = BestCheckpoint(cfg, self.checkpointer)
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    def build_writers(self) -> list[EventWriter]:
        own = [] if self.cfg.SOLVER.LOGGER == "tensorboard" else [RunWriter(self.cfg)]
        return [*super().build_writers(), *own]

    def build_hooks(self) -> list[HookBase]:
        cfg, model = self.cfg, self.segmentor
        self._checkpoints = CheckpointHook(
            self.checkpointer,
            self.interruption,
            period=cfg.SOLVER.CHECKPOINT_PERIOD,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
        )
        return [
            hooks.IterationTimer(),
            self.seeds,
            *([EMHook.from_config(cfg, model.bank)] if getattr(model, "bank", None) else []),
            PrototypeHook(model),
            *health_hooks(cfg, model),
            hooks.LRScheduler(),
            FeatureDistanceHook(cfg, model),
            self._checkpoints,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            *([MetricsWriter(cfg.OUTPUT_DIR, self.build_writers)] if comm.is_main_process() else []),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the last checkpoint that is whole, if there is one.

        Raises:
            FileNotFoundError: none of the checkpoints is whole. Others as ``Checkpointer.load``.
        """
        super().resume_or_load(resume)
        if resume:
            self.best.resume()
        self._trainer.data_loader.dataset.begin(self.start_iter, seed=self.seeds.seed)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"batch": self.cfg.SOLVER.IMS_PER_BATCH}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state with the rates, the schedule and the batch of the config.

        Raises:
            ValueError: a schedule that is over before the checkpoint, or whose iterations
                ``SOLVER.REFERENCE_WORLD_SIZE`` counts otherwise; others as ``TrainLoop.load_state_dict``.
        """
        done, keys = state_dict["iteration"] + 1, self.cfg.SOLVER
        before = state_dict.get("batch", keys.IMS_PER_BATCH)
        if before != keys.IMS_PER_BATCH and keys.REFERENCE_WORLD_SIZE:
            raise ValueError(
                f"--resume: the checkpoint's {done} iterations were of {before} images, but "
                f"SOLVER.REFERENCE_WORLD_SIZE makes iterations of {keys.IMS_PER_BATCH} images of "
                f"{comm.get_world_size()} processes; go on with as many processes as before, or with "
                f"SOLVER.REFERENCE_WORLD_SIZE 0, SOLVER.IMS_PER_BATCH {before} and the rate and schedule of "
                f"that batch, {ANEW}"
            )
        if done > self.max_iter:
            raise ValueError(
                f"--resume: the checkpoint has had {done} iterations, SOLVER.MAX_ITER is {self.max_iter}; "
                f"expected at least as many, {ANEW}"
            )
        if before != keys.IMS_PER_BATCH:
            logger.warning(
                "SOLVER.IMS_PER_BATCH was %d, is %d from iteration %d on", before, keys.IMS_PER_BATCH, done
            )
        rates = self.scheduler.base_lrs
        super().load_state_dict(state_dict)
        # The config may ask for other rates, or another schedule, than the checkpoint has.
        self.scheduler.base_lrs = rates
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate

    def train(self) -> Any:
        """Train from ``start_iter`` on.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            ValueError: the last evaluation is not as ``TEST.EXPECTED_RESULTS`` say.
        """
        with self.interruption.watching(), lost_workers_explained():
            try:
                # DefaultTrainer's own asks for results by Detectron2's names.
                TrainerBase.train(self, self.start_iter, self.max_iter)
                self._trainer.finish()
            finally:
                # Ends the loader's workers. At the end of the process they would be sent SIGTERM, and wait.
                self._trainer._data_loader_iter_obj = None
        verify_expected_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def _evaluate(self) -> dict[str, Any]:
        bank = getattr(self.segmentor, "bank", None)
        if bank is not None and not bank.is_fitted:
            logger.warning(
                "Not evaluated at iteration %d: no class has a mixture before "
                "MODEL.GMM.WARM_START_FEATURES of its features are there", self.iter,
            )  # fmt: skip
            return {}
        # After the last step Detectron2 has already counted it.
        done = min(self.iter + 1, self.max_iter)
        # Or was loaded, by a run that had ended.
        is_saved = done - 1 in (self._checkpoints.saved, self.start_iter - 1)
        weights = Path(self.cfg.OUTPUT_DIR) / self.checkpointer.names[-1] if is_saved else ""
        try:
            with self.interruption.at_once():
                results = evaluate(with_weights(self.cfg, weights), self.segmentor, iteration=done)
        except Interrupted:
            self._checkpoints.save()
            raise
        self._last_eval_results = results
        if comm.is_main_process():
            self.best.offer(results, done)
            # The first overlay of each data set goes to TensorBoard.
            for name in self.cfg.DATASETS.TEST:
                for file in sorted((Path(self.cfg.OUTPUT_DIR) / "visualizations" / name).glob("*.png"))[:1]:
                    picture = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
                    self.storage.put_image(f"{name}/{file.stem}", picture.transpose(2, 0, 1))
        return results

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict[str, Any]:
        return evaluate(cfg, model)
