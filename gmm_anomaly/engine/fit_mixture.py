"""Fit mixtures onto a frozen network by EM: a generative classifier and an anomaly score without training."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from torch import Tensor
from torch.utils.data import DataLoader

from gmm_anomaly.gmm import GaussianMixtureBank, class_log_density, component_log_prob, own_class_log_prob
from gmm_anomaly.gmm.collectives import sum_over_ranks

from .em_hook import EMHook
from .evaluation import evaluate
from .feature_distance import TrainingImages
from .fit_hooks import FitProgress, PassEnd
from .frozen_network import FrozenNetworkCheckpointer
from .health_hook import health_hooks
from .labelled_embedding import labelled_embedding

logger = logging.getLogger(__name__)

# Checkpoints of a fit are named so that they never overwrite those of a training.
PREFIX = "mixtures"
LOG_PERIOD = 20
PIXELS_PER_CHUNK = 32768


def fit_mixture(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Fit, save ``OUTPUT_DIR/mixtures_final.pth`` and ``config.yaml``, evaluate.

    Collective: every rank must call.

    Args:
        cfg: a frozen config from :func:`fitting_config`.
        resume: go on from the last checkpoint of a fit in ``OUTPUT_DIR``.

    Returns:
        The results, as :func:`evaluate` gives them.
    """
    fitter = MixtureFitter(cfg)
    fitter.resume_or_load(resume=resume)
    if comm.is_main_process():
        fitter.write_config()
    fitter.train()
    return fitter.results


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

    Raises:
        ValueError: ``MODEL.GMM.FIT_PASSES`` or ``SOLVER.IMS_PER_BATCH`` out of range.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        ranks = comm.get_world_size()
        if cfg.MODEL.GMM.FIT_PASSES < 1:
            raise ValueError(f"MODEL.GMM.FIT_PASSES: expected at least 1, found {cfg.MODEL.GMM.FIT_PASSES}")
        if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % ranks:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH: expected a positive multiple of the {ranks} processes, found "
                f"{cfg.SOLVER.IMS_PER_BATCH}"
            )
        self.cfg = cfg
        self.model = build_model(cfg).requires_grad_(False).eval()
        self.images = TrainingImages(cfg)
        self.per_pass = math.ceil(len(self.images) / cfg.SOLVER.IMS_PER_BATCH)
        self.max_iter = self.per_pass * cfg.MODEL.GMM.FIT_PASSES
        self.checkpointer = FrozenNetworkCheckpointer(
            self.model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process(), trainer=weakref.proxy(self)
        )
        self.results: dict[str, Any] = {}
        self._batches: Iterator[list[dict[str, Any]]] = iter(())
        self.register_hooks(self.build_hooks())

    @property
    def bank(self) -> GaussianMixtureBank:
        return self.model.bank

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        built = [
            hooks.IterationTimer(),
            EMHook.from_config(cfg, self.bank),
            PassEnd(),
            *health_hooks(cfg, self.model),
            FitProgress(LOG_PERIOD),
        ]
        if comm.is_main_process():
            Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
            # At the end of each pass, if not more often.
            period = min(cfg.SOLVER.CHECKPOINT_PERIOD, self.per_pass)
            built.append(
                hooks.PeriodicCheckpointer(self.checkpointer, period, max_to_keep=2, file_prefix=PREFIX)
            )
        built.append(hooks.EvalHook(0, self._evaluate))
        if comm.is_main_process():
            writers = [
                JSONWriter(str(Path(cfg.OUTPUT_DIR) / "metrics.json")),
                TensorboardXWriter(cfg.OUTPUT_DIR),
            ]
            built.append(hooks.PeriodicWriter(writers, period=LOG_PERIOD))
        return built

    def resume_or_load(self, *, resume: bool) -> None:
        """Load the network of ``MODEL.WEIGHTS``, or the last checkpoint of a fit, if there is one."""
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.load(self.checkpointer.get_checkpoint_file())
            self.start_iter = self.iter + 1
            return
        self.checkpointer.load_network(self.cfg.MODEL.WEIGHTS)

    def write_config(self) -> None:
        """Write the config that ``--eval-only`` needs, ``MODEL.WEIGHTS`` included."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / f"{PREFIX}_final.pth")
        target = Path(cfg.OUTPUT_DIR) / "config.yaml"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(cfg.dump())
        temporary.replace(target)

    def train(self) -> None:
        order = batch_order(
            len(self.images),
            self.cfg.SOLVER.IMS_PER_BATCH,
            passes=self.cfg.MODEL.GMM.FIT_PASSES,
            seed=max(self.cfg.SEED, 0),
        )
        loader: DataLoader[Any] = DataLoader(
            self.images,
            batch_sampler=[
                batch[comm.get_rank() :: comm.get_world_size()] for batch in order[self.start_iter :]
            ],
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
        )
        self._batches = iter(loader)
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
        self._log_likelihood(own, labels)

    def _log_likelihood(self, own: Tensor, labels: Tensor) -> None:
        density = class_log_density(own, self.bank.reduction)
        counted = self.bank.fitted.any(dim=1)[labels]
        sums = torch.stack([torch.where(counted, density, 0.0).sum(), counted.sum()]).double()
        total, pixels = sum_over_ranks(sums).tolist()
        if pixels:
            self.storage.put_scalar("fit/log_likelihood", total / pixels, smoothing_hint=False)

    def _evaluate(self) -> dict[str, Any]:
        self.results = evaluate(self.cfg, self.model, iteration=self.max_iter)
        return self.results


def batch_order(images: int, batch_size: int, *, passes: int, seed: int) -> list[list[int]]:
    """Indices of the images of every batch; each pass is in a random order and may end with a short batch."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[list[int]] = []
    for _ in range(passes):
        batches += (part.tolist() for part in torch.randperm(images, generator=generator).split(batch_size))
    return batches


def own_log_prob(bank: GaussianMixtureBank, features: Tensor, labels: Tensor) -> Tensor:
    """(n, D) features, (n,) classes -> (n, M) log-densities under the components of each one's own class."""
    means, scales = bank.unit_means, bank.scales
    own = features.new_empty(len(features), bank.num_components)
    for start in range(0, len(features), PIXELS_PER_CHUNK):
        rows = slice(start, start + PIXELS_PER_CHUNK)
        log_prob = component_log_prob(features[rows], means, scales)
        own[rows] = own_class_log_prob(log_prob, labels[rows])
    return own
