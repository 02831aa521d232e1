"""What happens between the iterations of a fit: the end of a pass, and a line in the log."""

from __future__ import annotations

import datetime
import logging
import math
import time

from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.collectives import sum_over_ranks

from .feature_distance import fit_feature_distance

logger = logging.getLogger(__name__)


class PassEnd(HookBase):
    """After a pass, classes too rare for a warm start begin with what was seen of them; after the last one
    come an EM step and what scores need to know of the training set. Its trainer is a ``MixtureFitter``."""

    def after_step(self) -> None:
        trainer, bank = self.trainer, self.trainer.bank
        done = trainer.iter + 1
        if done % trainer.per_pass == 0 and bank.warm_start is not None:
            seen = sum_over_ranks(bank.warm_start.count.clone()) > 0
            for index in (~bank.started & seen).nonzero().flatten().tolist():
                bank.initialise(index, bank.warm_start.take(index))
        if done == trainer.max_iter:
            bank.update(bank.fitted.any(dim=1))
            self._warn_of_unseen_classes(bank)
            fit_feature_distance(trainer.cfg, trainer.model)

    def _warn_of_unseen_classes(self, bank: GaussianMixtureBank) -> None:
        unseen = (~bank.fitted.any(dim=1)).nonzero().flatten().tolist()
        if unseen:
            names = MetadataCatalog.get(self.trainer.cfg.DATASETS.TRAIN[0]).stuff_classes
            logger.warning(
                "No labelled pixel of %s in the training set: the mixtures never predict these classes",
                ", ".join(names[index] for index in unseen),
            )


class FitProgress(HookBase):
    """Logs pass, iteration, likelihood and time left, at the ends of passes and every ``period`` iterations.
    Its trainer is a ``MixtureFitter``."""

    def __init__(self, period: int) -> None:
        self.period = period

    def before_train(self) -> None:
        self.started_at = time.perf_counter()

    def after_step(self) -> None:
        trainer = self.trainer
        done, here = trainer.iter + 1, trainer.iter + 1 - trainer.start_iter
        if done % self.period and done % trainer.per_pass and here > 1:
            return
        seconds = (time.perf_counter() - self.started_at) / here
        known = trainer.storage.latest().get("fit/log_likelihood")
        likelihood = "-" if known is None else f"{known[0]:.3f}"
        logger.info(
            "pass %d/%d  iteration %d/%d  log-likelihood of a pixel %s  classes %d/%d  %.2f s each  ETA %s",
            math.ceil(done / trainer.per_pass),
            trainer.max_iter // trainer.per_pass,
            done,
            trainer.max_iter,
            likelihood,
            int(trainer.bank.fitted.any(dim=1).sum()),
            trainer.bank.num_classes,
            seconds,
            datetime.timedelta(seconds=round(seconds * (trainer.max_iter - done))),
        )
