"""Detectron2's default trainer with this project's loop, data, optimiser, EM hook and evaluation."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.data import build_test_loader, build_train_loader
from gmm_anomaly.data.build import lost_workers_explained, run_seed

from .best_checkpoint import BestCheckpoint
from .checkpoint import Checkpointer
from .checkpoint_hook import CheckpointHook
from .em_hook import EMHook
from .evaluation import evaluate
from .feature_distance import FeatureDistanceHook, needs_fitting
from .health_hook import health_hooks
from .interruption import Interrupted, Interruption
from .optimizer import build_optimizer, build_scheduler
from .prototype_hook import prototype_hooks
from .step_seeds import StepSeeds
from .train_loop import TrainLoop

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains a segmentor by config; mixtures are fitted by :class:`EMHook` while the features learn.

    Args:
        cfg: a frozen config from :func:`gmm_anomaly.engine.build_config`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor cannot build a distributed model on the CPU, or use mixed precision
        # there.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        # Until a checkpoint that is resumed tells another one.
        self.seeds = StepSeeds.from_config(cfg, run_seed(cfg))
        self.interruption = Interruption()
        self._trainer = TrainLoop(
            wrap_distributed(model),
            self.build_train_loader(cfg),
            optimizer,
            amp=cfg.SOLVER.AMP.ENABLED,
            non_finite=cfg.SOLVER.NON_FINITE,
            non_finite_limit=cfg.SOLVER.NON_FINITE_LIMIT,
        )
        self.segmentor = model
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process(), trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.best = BestCheckpoint.from_config(cfg, self.checkpointer)
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        bank = getattr(self.segmentor, "bank", None)
        built: list[HookBase] = [hooks.IterationTimer(), self.seeds]
        if bank is not None:
            built.append(EMHook.from_config(cfg, bank))
        built += prototype_hooks(self.segmentor)
        built += health_hooks(cfg, self.segmentor)
        built.append(hooks.LRScheduler())
        if needs_fitting(self.segmentor):
            built.append(FeatureDistanceHook(cfg, self.segmentor))
        self._checkpoints = CheckpointHook(
            self.checkpointer,
            self.interruption,
            period=cfg.SOLVER.CHECKPOINT_PERIOD,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
        )
        built.append(self._checkpoints)
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return built

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the last checkpoint that is whole, if there is one.

        Raises:
            FileNotFoundError: none of the checkpoints is whole. Others as ``Checkpointer.load``.
        """
        super().resume_or_load(resume)
        if resume and self.best is not None:
            self.best.resume()
        stream = self._trainer.data_loader.dataset
        stream.begin(self.start_iter, seed=self.seeds.seed)

    def train(self) -> Any:
        """Train from ``start_iter`` on.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
        """
        with self.interruption.watching(), lost_workers_explained():
            return super().train()

    def _evaluate(self) -> dict[str, Any]:
        # After the last step Detectron2 has already counted it.
        done = min(self.iter + 1, self.max_iter)
        try:
            with self.interruption.at_once():
                results = evaluate(self.cfg, self.segmentor, iteration=done)
        except Interrupted:
            self._checkpoints.save()
            raise
        if comm.is_main_process():
            if self.best is not None:
                self.best.offer(results, done)
            self._log_pictures()
        return results

    def _log_pictures(self) -> None:
        """The first overlay of each data set goes to TensorBoard."""
        for name in self.cfg.DATASETS.TEST:
            pictures = sorted((Path(self.cfg.OUTPUT_DIR) / "visualizations" / name).glob("*.png"))
            if pictures:
                picture = cv2.cvtColor(cv2.imread(str(pictures[0])), cv2.COLOR_BGR2RGB)
                self.storage.put_image(f"{name}/{pictures[0].stem}", picture.transpose(2, 0, 1))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict[str, Any]:
        return evaluate(cfg, model)
