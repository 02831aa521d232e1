"""Fit mixtures onto a frozen network by EM: a generative classifier and an anomaly score without training."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, TrainerBase, default_writers, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader

from gmm_anomaly.gmm import GaussianMixtureBank, class_log_density, component_log_prob, own_class_log_prob
from gmm_anomaly.gmm.collectives import sum_over_ranks

from .belonging import with_weights
from .checkpoint import Checkpointer
from .evaluation import evaluate
from .feature_distance import LabelledImages, fit_feature_distance
from .health_hook import health_hooks, labelled_embedding
from .hooks import CheckpointHook, EMHook
from .launch import Interruption
from .output_dir import MetricsWriter, write_config
from .trained_model import load_network

logger = logging.getLogger(__name__)

# Checkpoints of a fit never overwrite those of a training.
PREFIX = "mixtures"
LOG_PERIOD = 20
PIXELS_PER_CHUNK = 32768


def fit_mixture(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Fit, save ``OUTPUT_DIR/mixtures_final.pth`` and ``config.yaml``, evaluate.

    Collective: every rank must call.

    Args:
        cfg: a frozen config from :func:`fitting_config`.
        resume: go on from the last checkpoint of a fit in ``OUTPUT_DIR``, if there is one.

    Returns:
        The results, as :func:`evaluate` gives them.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    fitter = MixtureFitter(cfg)
    fitter.resume_or_load(resume=resume)
    found = with_weights(cfg, Path(cfg.OUTPUT_DIR) / f"{PREFIX}_final.pth")
    # What --eval-only needs.
    write_config(found)
    fitter.train()
    return evaluate(found, fitter.model, iteration=fitter.max_iter)


def check_output_dir(cfg: CfgNode) -> None:
    """Raise ValueError if ``OUTPUT_DIR`` belongs to a training, whose log and config a fit would replace."""
    tag = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if tag.is_file() and not tag.read_text().startswith(PREFIX):
        raise ValueError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} has the checkpoints of a training ({tag.read_text().strip()}); "
            f"add OUTPUT_DIR {Path(cfg.OUTPUT_DIR) / PREFIX}, or another folder, to the command"
        )


class MixtureFitter(TrainerBase):
    """EM over the training set with the network in evaluation mode.

    An iteration takes the labelled pixels of ``SOLVER.IMS_PER_BATCH`` whole images, assigns them to the
    components of their classes and records all of them, predicted correctly or not; :class:`EMHook` does the
    rest as in training, by the same keys (memory, momentum, interval, warm start). A pass takes every image
    of ``DATASETS.TRAIN`` once, in an order that ``SEED`` fixes.

    Args:
        cfg: a frozen config from :func:`fitting_config`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = build_model(cfg).requires_grad_(False).eval()
        self.bank: GaussianMixtureBank = self.model.bank
        self.images = LabelledImages(cfg)
        self.per_pass = math.ceil(len(self.images) / cfg.SOLVER.IMS_PER_BATCH)
        self.max_iter = self.per_pass * cfg.MODEL.GMM.FIT_PASSES
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            cfg=cfg,
            save_to_disk=comm.is_main_process(),
            trainer=weakref.proxy(self),
        )
        self.interruption = Interruption()
        self._batches: Iterator[list[dict[str, Any]]] = iter(())
        self.register_hooks(
            [
                hooks.IterationTimer(),
                EMHook.from_config(cfg, self.bank),
                _PassHook(),
                *health_hooks(cfg, self.model),
                CheckpointHook(
                    self.checkpointer,
                    self.interruption,
                    # At the end of each pass, if not more often.
                    period=min(cfg.SOLVER.CHECKPOINT_PERIOD, self.per_pass),
                    keep=cfg.SOLVER.CHECKPOINT_KEEP,
                    prefix=PREFIX,
                ),
            ]
        )
        if comm.is_main_process():
            writers = partial(default_writers, cfg.OUTPUT_DIR, self.max_iter)
            self.register_hooks([MetricsWriter(cfg.OUTPUT_DIR, writers, period=LOG_PERIOD)])

    def resume_or_load(self, *, resume: bool) -> None:
        """Load the network of ``MODEL.WEIGHTS``, or the last checkpoint of a fit, if there is one."""
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.load(self.checkpointer.get_checkpoint_file())
            self.start_iter = self.iter + 1
        else:
            load_network(self.checkpointer, self.cfg.MODEL.WEIGHTS)

    def train(self) -> None:
        order = batch_order(
            len(self.images),
            self.cfg.SOLVER.IMS_PER_BATCH,
            passes=self.cfg.MODEL.GMM.FIT_PASSES,
            seed=max(self.cfg.SEED, 0),
        )
        mine = [batch[comm.get_rank() :: comm.get_world_size()] for batch in order[self.start_iter :]]
        loader: DataLoader[Any] = DataLoader(
            self.images, batch_sampler=mine, num_workers=self.cfg.DATALOADER.NUM_WORKERS, collate_fn=list
        )
        self._batches = iter(loader)
        with self.interruption.watching():
            super().train(self.start_iter, self.max_iter)

    @torch.no_grad()
    def run_step(self) -> None:
        parts = [labelled_embedding(self.model, item) for item in next(self._batches)]
        # A rank may have no image in the last batch of a pass, but joins it.
        features = torch.cat([part[0] for part in parts] or [self.bank.means.new_zeros(0, self.bank.dim)])
        labels = torch.cat([part[1] for part in parts] or [torch.zeros(0, dtype=torch.int64)])
        labels = labels.to(features.device)
        own = own_log_prob(self.bank, features, labels)
        assignment = self.model.classifier.assign(own, labels)
        self.bank.record(features, labels, assignment, torch.ones_like(labels, dtype=torch.bool))
        density = class_log_density(own, self.bank.reduction)
        counted = self.bank.fitted.any(dim=1)[labels]
        sums = torch.stack([torch.where(counted, density, 0.0).sum(), counted.sum()]).double()
        total, pixels = sum_over_ranks(sums).tolist()
        if pixels:
            self.storage.put_scalar("fit/log_likelihood", total / pixels, smoothing_hint=False)


class _PassHook(HookBase):
    """After a pass, classes too rare for a warm start begin with what was seen of them; after the last one
    come an EM step and what scores need to know of the training set. Logs how far the fit is."""

    trainer: MixtureFitter

    def after_step(self) -> None:
        trainer, bank = self.trainer, self.trainer.bank
        done, end_of_pass = trainer.iter + 1, (trainer.iter + 1) % trainer.per_pass == 0
        if end_of_pass and bank.warm_start is not None:
            bank.commit(least=1)
        if done == trainer.max_iter:
            bank.update(bank.fitted.any(dim=1))
            unseen = (~bank.fitted.any(dim=1)).nonzero().flatten().tolist()
            if unseen:
                names = MetadataCatalog.get(trainer.cfg.DATASETS.TRAIN[0]).stuff_classes
                logger.warning(
                    "No labelled pixel of %s in the training set: the mixtures never predict these classes",
                    ", ".join(names[index] for index in unseen),
                )
            fit_feature_distance(trainer.cfg, trainer.model)
        if end_of_pass or done % LOG_PERIOD == 0:
            logger.info(
                "pass %d/%d, iteration %d: log-likelihood of a pixel %.3f, %d of %d classes are fitted",
                math.ceil(done / trainer.per_pass),
                trainer.max_iter // trainer.per_pass,
                done,
                trainer.storage.latest().get("fit/log_likelihood", [math.nan])[0],
                int(bank.fitted.any(dim=1).sum()),
                bank.num_classes,
            )


def batch_order(images: int, batch_size: int, *, passes: int, seed: int) -> list[list[int]]:
    """Indices of the images of every batch; each pass is in a random order and may end with a short batch."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[list[int]] = []
    for _ in range(passes):
        batches += (part.tolist() for part in torch.randperm(images, generator=generator).split(batch_size))
    return batches


def own_log_prob(bank: GaussianMixtureBank, features: Tensor, labels: Tensor) -> Tensor:
    """(n, D) features, (n,) classes -> (n, M) log-densities under the components of each one's own class."""
    parts = [
        own_class_log_prob(component_log_prob(part, bank.unit_means, bank.scales), own)
        for part, own in zip(features.split(PIXELS_PER_CHUNK), labels.split(PIXELS_PER_CHUNK), strict=True)
    ]
    return torch.cat(parts)
