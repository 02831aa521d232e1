"""What happens between the iterations of a training: seeds, EM, running prototypes, checkpoints."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from gmm_anomaly.config import with_rules
from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.data.stream import seed_generators
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.health import state_numbers
from gmm_anomaly.modeling.classifiers import RunningMeanPrototypes

from .checkpoint import FINAL, Checkpointer
from .launch import Interruption

logger = logging.getLogger(__name__)

# Of the numbers that seed a step; a stream's images have another.
STEPS = 1
EM_LOG_PERIOD = 20
# Share of the schedule over which a warm start's momentum goes to the bank's own.
RAMP = 0.5
WARM_START_MOMENTUM = 0.5
BEST = "model_best"
# Beginnings of the names of metrics that are better when they are smaller; of all others more is better.
SMALLER_IS_BETTER = ("FPR", "ECE", "loss")


class StepSeeds(HookBase):
    """Seeds Python, numpy and torch before each step by the run's seed, the rank and the iteration.

    So dropout, drop path and sampled losses of iteration ``k`` are the same whether the run was interrupted
    before or not, whatever evaluations drew in between, and on every rank, though checkpoints are rank 0's.

    Args:
        seed: of the run, not negative; a checkpoint knows it.
        fixed: keep this seed also where the checkpoint that is resumed has another, for the config asks for
            it.
    """

    def __init__(self, seed: int, *, fixed: bool) -> None:
        self.seed = seed
        self.fixed = fixed

    def before_step(self) -> None:
        seed_generators(self.seed, STEPS, comm.get_rank(), self.trainer.iter)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not self.fixed:
            self.seed = state["seed"]


class EMHook(HookBase):
    """Moves what the forward pass recorded into the memory after each step, and runs EM every few steps.

    The first EM step follows the first iteration, as in the released GMMSeg code.

    Args:
        bank: the mixtures.
        interval: iterations between EM steps.
        start_momentum: momentum of the means at iteration 0; None: the bank's own throughout. It is reached
            when half of the schedule is over; ``1 - momentum`` falls geometrically until then.
    """

    def __init__(
        self, bank: GaussianMixtureBank, *, interval: int = 5, start_momentum: float | None = None
    ) -> None:
        self.bank = bank
        # Without this a classifier records nothing, and says so.
        bank.em_attached = True
        self.interval = interval
        self.start_momentum = start_momentum

    @classmethod
    def from_config(cls, cfg: CfgNode, bank: GaussianMixtureBank) -> EMHook:
        keys = with_rules(cfg).MODEL.GMM
        return cls(
            bank,
            interval=keys.UPDATE_INTERVAL,
            start_momentum=WARM_START_MOMENTUM if keys.WARM_START else None,
        )

    def before_train(self) -> None:
        self.bank.broadcast()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        # A training ends with something to evaluate, were it the start of too few features.
        hurry = iteration + 1 == self.trainer.max_iter and not self.bank.is_fitted
        if hurry:
            self.bank.commit(least=1)
        if hurry or iteration % self.interval == 0:
            self.bank.update(momentum_mean=self.momentum(iteration / self.trainer.max_iter))
        else:
            self.bank.commit()
        if iteration % EM_LOG_PERIOD == 0:
            numbers = {"momentum": self.momentum(iteration / self.trainer.max_iter)}
            for name, number in (numbers | state_numbers(self.bank)).items():
                self.trainer.storage.put_scalar(f"gmm/{name}", number, smoothing_hint=False)

    def momentum(self, progress: float) -> float:
        """Momentum of the means when the share ``progress`` of the schedule is over."""
        final, share = self.bank.momentum_mean, progress / RAMP
        if self.start_momentum is None or share >= 1:
            return final
        return 1 - (1 - self.start_momentum) ** (1 - share) * (1 - final) ** share


class PrototypeHook(HookBase):
    """Moves a model's running-mean prototypes by what the forward pass recorded, after each step."""

    def __init__(self, model: nn.Module) -> None:
        self.prototypes = [part for part in model.modules() if isinstance(part, RunningMeanPrototypes)]

    def before_train(self) -> None:
        for prototypes in self.prototypes:
            prototypes.broadcast()

    def after_step(self) -> None:
        for prototypes in self.prototypes:
            prototypes.update()


class CheckpointHook(HookBase):
    """Writes ``<prefix>_<iteration>.pth`` every few iterations and when the run is interrupted, and
    ``<prefix>_final.pth`` after the last one.

    Every rank has it, for they all must know of an interruption; the first one writes.

    Args:
        period: iterations from one checkpoint to the next.
        keep: the last so many stay on disk; 0: all.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        interruption: Interruption,
        *,
        period: int,
        keep: int,
        prefix: str = "model",
    ) -> None:
        self.checkpointer = checkpointer
        self.interruption = interruption
        self.period = period
        self.keep = keep
        self.prefix = prefix
        self.saved = -1

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        asked = self.interruption.asked_anywhere(self.checkpointer.model.device)
        if asked or done == self.trainer.max_iter or done % self.period == 0:
            self.save()
        if asked:
            self.interruption.end_if_asked()

    def save(self) -> None:
        """Write the state after the current iteration, unless that is done or the last one is over."""
        iteration, last = self.trainer.iter, self.trainer.max_iter - 1
        if iteration == self.saved or iteration > last or not comm.is_main_process():
            return
        name = f"{self.prefix}{FINAL}" if iteration == last else f"{self.prefix}_{iteration:07d}"
        self.checkpointer.save(name, iteration=iteration)
        self.saved = iteration
        if self.keep:
            self.checkpointer.keep_last(self.keep)


class BestCheckpoint:
    """Keeps the weights of the best evaluation in ``model_best.pth``, and what it was in ``model_best.json``.

    Those files outlive the process: a resumed run goes on from the best so far.

    Args:
        cfg: ``TEST.BEST_METRIC`` names data set, task and metric, as in results.json:
            "camvid_test/sem_seg/mIoU"; "": nothing is kept.

    Raises:
        ValueError: a metric, and no evaluations during training.
    """

    def __init__(self, cfg: CfgNode, checkpointer: Checkpointer) -> None:
        self.metric = metric = cfg.TEST.BEST_METRIC
        self.checkpointer = checkpointer
        self.value: float | None = None
        self._note = Path(checkpointer.save_dir) / f"{BEST}.json"
        if metric and cfg.TEST.EVAL_PERIOD <= 0:
            raise ValueError(
                f"TEST.BEST_METRIC: {metric} needs evaluations during training; set TEST.EVAL_PERIOD to the "
                "iterations from one to the next"
            )

    def resume(self) -> None:
        """Take over the best evaluation of the run so far, if it was by the same metric."""
        if self._note.is_file():
            noted = json.loads(self._note.read_text())
            if noted["metric"] == self.metric:
                self.value = noted["value"]

    def offer(self, results: Mapping[str, Any], iteration: int) -> None:
        """Save the weights if ``results``, of the evaluation after ``iteration``, are the best. NaN is not.

        Raises:
            ValueError: the results lack the metric; lists those that there are.
        """
        if not self.metric:
            return
        found = flatten_results_dict(results)
        if self.metric not in found:
            raise ValueError(
                f"TEST.BEST_METRIC: the evaluation gave no {self.metric!r}; it gave "
                f"{', '.join(sorted(found))}"
            )
        value = float(found[self.metric])
        sign = -1 if self.metric.split("/")[-1].startswith(SMALLER_IS_BETTER) else 1
        best = not math.isnan(value) and (self.value is None or sign * value > sign * self.value)
        logger.info("%s is %g, the best before was %s", self.metric, value, self.value)
        if best:
            self.value = value
            self.checkpointer.save_weights(BEST)
            with replacing(self._note) as temporary:
                noted = {"metric": self.metric, "value": value, "iteration": iteration}
                temporary.write_text(json.dumps(noted, indent=2) + "\n")
